"""Divergence policy: what happens when a loss or gradient is not finite, or a loss is a spike.

`training/step.py` has already skipped such an update on the device: the batch is consumed, the state is unchanged. A
batch is bad if the step skipped it without the skip mask. Checkpoints name the batches in the skip mask, so that a
resumed run skips them again. Decisions use only results that have arrived, which are identical in every process.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError

IN_A_ROW = 10  # batches


class Diverged(ConvoyError):
    """Training has diverged beyond what the policy allows; the last updates were skipped."""

    exit_code = ExitStatus.STOP
    everywhere = True


class Divergence:
    """The policy of one attempt. Step n + 1 consumes batch n.

    - stop: the first bad batch ends the run.
    - skip: bad batches are skipped. IN_A_ROW bad batches in a row end the run.
    - rollback: the run returns to its newest checkpoint. If a good step followed the bad batches, they are skipped. If
      IN_A_ROW are bad in a row, an earlier update has corrupted the state: the batch before the row is skipped instead,
      then 2, 4, 8 batches before it, until these reach back to the checkpoint.

    Args:
        policy: `resilience.divergence`.
        names: of the metrics, in the order of a step's results.
        on_message: called with sentences for the user.
    """

    def __init__(self, policy: str, names: Sequence[str], on_message: Callable[[str], None]):
        self._policy, self._say = policy, on_message
        self._loss, self._norm, self._skipped = (names.index(name) for name in ("loss", "grad_norm", "skipped"))
        self.skipped: set[int] = set()
        """The batches whose updates this run skips: saved with its position in the data."""
        self._bad: list[int] = []  # bad batches without a decision
        self._problem = ""  # with the first of them; under `skip`, with the latest bad batch
        self._in_a_row = 0  # updates skipped up to the latest result, with or without the mask
        self._corrupted_before: int | None = None  # a long row shows that an earlier update corrupted the state
        self._row_starts = 0  # first batch of that row
        self.pending = False
        """Whether there are bad results that `rollback` has not decided about."""

    def resume(self, skipped: Iterable[int]) -> None:
        """Adds the skipped batches that a checkpoint names."""
        self.skipped |= set(skipped)

    def skip_mask(self, step: int, k: int) -> tuple[bool, ...]:
        """Returns whether to skip the update of each of the k batches from `step` on."""
        return tuple(step + i in self.skipped for i in range(k))

    def add_results(self, first: int, values: np.ndarray) -> None:
        """Processes the metrics `[steps, names, 2]` of the batches from `first` on."""
        if not (self._in_a_row or values[:, self._skipped, 0].any()):
            return  # the usual case
        for batch, row in enumerate(values, first):
            self._in_a_row = self._in_a_row + 1 if row[self._skipped, 0] else 0
            if self._in_a_row and batch not in self.skipped:
                self._add_bad_batch(batch, bool(np.isfinite(row[[self._loss, self._norm], 0]).all()))

    def _add_bad_batch(self, batch: int, finite: bool) -> None:
        if not self._bad:
            self._problem = "the loss is a spike" if finite else "the loss or its gradient is not finite"
        if self._policy == "skip":
            self.skipped.add(batch)
            self._say(f"warning: step {batch + 1}: {self._problem}; the update of batch {batch} is skipped")
        else:
            self._bad.append(batch)
        if self._in_a_row >= IN_A_ROW and self._corrupted_before is None:
            self._row_starts = batch + 1 - self._in_a_row
            self._corrupted_before = min((b for b in self._bad if b >= self._row_starts), default=self._row_starts)
        self.pending = bool(self._bad) or self._corrupted_before is not None

    def rollback(self, step: int, checkpoints: Sequence[int], ending: bool, broken: Sequence[str] = ()) -> bool:
        """Whether the run must return to its newest checkpoint; `skipped` then includes the batches to skip.

        If False and `pending` is still True, do not save: the state may be corrupted.

        Args:
            step: of the loop; the results of all steps before it have arrived.
            checkpoints: steps that are saved, oldest first.
            ending: whether the run ends here, so that no good step can follow bad steps.
            broken: arrays of the state to be saved that are not finite although every loss was.

        Raises:
            Diverged: the policy ends the run.
        """
        if broken:
            self._problem = f"{broken[0]} has values that are not finite"
            self._corrupted_before, self._row_starts, self.pending = step, step - self._in_a_row, True
        if not self.pending:
            return False
        found = f"step {self._bad[0] + 1 if self._bad else step}: {self._problem}"
        if self._policy == "rollback":
            return self._roll_back(found, max(checkpoints, default=0), ending)
        if self._policy == "skip" and not broken:
            found += f"; {IN_A_ROW} updates in a row were skipped"
        elif self._bad:
            found += "; the update was skipped"
        raise Diverged(f"{found}. {_advice(checkpoints)}")

    def _roll_back(self, found: str, saved: int, ending: bool) -> bool:
        if self._corrupted_before is not None:
            count = self._corrupted_before - self._row_starts + 1  # one more than are skipped there already: 1, 2, 4, 8
            chosen = list(range(self._row_starts - count, self._row_starts))
        elif self._in_a_row and not ending:
            return False  # the next results show whether these batches are the problem
        else:
            chosen = self._bad
        if chosen[0] < saved:
            raise Diverged(
                f"{found}, even without the batches since the checkpoint of step {saved}. {_advice([saved])}"
            )
        self.skipped |= set(chosen)
        self._say(
            f"warning: {found}; rolling back to step {saved} to continue without batch{'es' * (len(chosen) > 1)} "
            f"{', '.join(map(str, chosen))}"
        )
        self._bad, self._corrupted_before, self._in_a_row, self.pending = [], None, 0, False
        return True


def _advice(checkpoints: Sequence[int]) -> str:
    return (
        "Check the data of that step and optimizer.learning_rate; "
        f"checkpoints: {', '.join(map(str, checkpoints)) or 'none'}. resilience.divergence=skip or rollback continues "
        "without such batches. To change the learning rate, start over with --fresh."
    )
