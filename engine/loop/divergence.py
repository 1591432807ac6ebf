"""Divergence policy: what happens when a loss or gradient is not finite, or a loss is a spike.

`training/step.py` has already skipped such an update on the device: the batch is consumed, the state is unchanged. The
loop passes a skip mask: batches to skip in any case. A batch is bad if the step skipped its update although the mask
did not ask for it. Checkpoints name the batches of the mask, so that a resumed run skips them again. Decisions use
only results that have arrived, which are identical in every process.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engine.base.errors import ConvoyError
from engine.cluster.exit_status import ExitStatus

MAX_BAD_IN_A_ROW = 10  # batches
SHOWN = 3  # arrays that a message names


class Diverged(ConvoyError):
    """Training has diverged beyond what the policy allows; the last updates were skipped."""

    exit_code = ExitStatus.STOP
    everywhere = True


def list_names(names: Sequence[str]) -> str:
    """Returns the first `SHOWN` names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Divergence:
    """The policy of one attempt. Step n + 1 consumes batch n.

    - stop: the first bad batch ends the run.
    - skip: bad batches are skipped. MAX_BAD_IN_A_ROW bad batches in a row end the run.
    - rollback: the run returns to its newest checkpoint. If a good step followed the bad batches, they are skipped. If
      MAX_BAD_IN_A_ROW are bad in a row, an earlier update has corrupted the state. Then the batch before these is
      skipped instead. If the bad batches come again, the 2 batches before that one are skipped too, then 4 more, then
      8. The run ends if a batch to skip lies before the checkpoint.

    Args:
        policy: `resilience.divergence`.
        names: of the metrics, in the order of a step's results.
        on_message: called with sentences for the user.
    """

    def __init__(self, policy: str, names: Sequence[str], on_message: Callable[[str], None]):
        self._policy, self._say = policy, on_message
        self._loss_column, self._norm_column, self._skipped_column = (
            names.index(name) for name in ("loss", "grad_norm", "skipped")
        )
        self.skipped: set[int] = set()
        """The batches whose updates this run skips: saved with its position in the data."""
        self._bad: list[int] = []  # bad batches without a decision
        self._problem = ""  # of the first batch in `_bad`; under `skip`, of the latest bad batch
        self._in_a_row = 0  # consecutive skipped updates up to the latest result, those of the mask included
        # Set if MAX_BAD_IN_A_ROW updates were skipped in a row: an earlier update has corrupted the state.
        self._first_bad: int | None = None  # first bad batch of that series
        self._series_start = 0  # first skipped batch of that series: bad, or in the mask
        self.pending = False
        """Whether there are bad results without a decision of `must_roll_back`."""

    def resume(self, skipped: Iterable[int]) -> None:
        """Adds the skipped batches that a checkpoint names."""
        self.skipped |= set(skipped)

    def skip_mask(self, first: int, k: int) -> tuple[bool, ...]:
        """Returns whether to skip the update of each of the k batches from batch `first` on."""
        return tuple(first + i in self.skipped for i in range(k))

    def add_results(self, first: int, values: np.ndarray) -> None:
        """Processes the metrics `[steps, names, (sum, weight)]` of the batches from `first` on."""
        if not (self._in_a_row or values[:, self._skipped_column, 0].any()):
            return  # the usual case
        for batch, metrics in enumerate(values, first):
            self._in_a_row = self._in_a_row + 1 if metrics[self._skipped_column, 0] else 0
            if self._in_a_row and batch not in self.skipped:
                loss, norm = np.isfinite(metrics[[self._loss_column, self._norm_column], 0])
                of_gradient = "the loss is a spike" if norm else "the gradient of a finite loss is not finite"
                self._add_bad_batch(batch, of_gradient if loss else "the loss is not finite")

    def _add_bad_batch(self, batch: int, problem: str) -> None:
        if not self._bad:
            self._problem = problem
        if self._policy == "skip":
            self.skipped.add(batch)
            self._say(f"warning: step {batch + 1}: {self._problem}; the update of batch {batch} is skipped")
        else:
            self._bad.append(batch)
        if self._in_a_row >= MAX_BAD_IN_A_ROW and self._first_bad is None:
            self._series_start = batch + 1 - self._in_a_row
            self._first_bad = min((b for b in self._bad if b >= self._series_start), default=self._series_start)
        self.pending = bool(self._bad) or self._first_bad is not None

    def must_roll_back(
        self,
        step: int,
        checkpoints: Sequence[int],
        ending: bool,
        broken: Sequence[str] = (),
        explain: Callable[[int], str] = lambda batch: "",
    ) -> bool:
        """Whether the run must return to its newest checkpoint; `skipped` then includes the batches to skip.

        If False and `pending` is still True, do not save: an earlier update may have corrupted the state.

        Args:
            step: number of finished steps, which is the number of the next batch; their results have arrived.
            checkpoints: steps that are saved, oldest first.
            ending: whether the run ends here, so that no good step can follow bad steps.
            broken: names of state arrays with values that are not finite, found before a save.
            explain: returns sentences about a bad batch. Called only before Diverged is raised, as it may take long.

        Raises:
            Diverged: the policy ends the run.
        """
        if broken:
            self._problem = f"{list_names(broken)} {'has' if len(broken) == 1 else 'have'} values that are not finite"
            self._first_bad, self._series_start, self.pending = step, step - self._in_a_row, True
        if not self.pending:
            return False
        found = f"step {self._bad[0] + 1 if self._bad else step}: {self._problem}"
        if self._policy == "rollback":
            return self._choose_batches(found, checkpoints, ending, explain)
        if self._policy == "skip" and not broken:
            found += f"; {MAX_BAD_IN_A_ROW} updates in a row were skipped"
        elif self._bad:
            found += "; the update was skipped"
        reason = "" if broken else explain(self._bad[0] if self._bad else step - 1)
        raise Diverged(f"{found}. {reason}{self._advice(checkpoints)}")

    def _choose_batches(
        self, found: str, checkpoints: Sequence[int], ending: bool, explain: Callable[[int], str]
    ) -> bool:
        """Adds the batches to skip after a rollback; returns False if the next results must show them first."""
        saved = max(checkpoints, default=0)
        if self._first_bad is not None:
            count = self._first_bad - self._series_start + 1  # one more than the mask skips before the first bad batch
            chosen = list(range(self._series_start - count, self._series_start))
        elif self._in_a_row and not ending:
            return False  # the next results show whether these batches are the problem
        else:
            chosen = self._bad
        if chosen[0] < saved:
            raise Diverged(
                f"{found}; no batch is left to skip since the checkpoint of step {saved}. {explain(chosen[-1])}"
                f"{self._advice(checkpoints)}"
            )
        self.skipped |= set(chosen)
        self._say(
            f"warning: {found}; rolling back to step {saved} to continue without batch{'es' * (len(chosen) > 1)} "
            f"{', '.join(map(str, chosen))}"
        )
        self._bad, self._first_bad, self._in_a_row, self.pending = [], None, 0, False
        return True

    def _advice(self, checkpoints: Sequence[int]) -> str:
        other = "resilience.divergence=skip or rollback continues without such batches. "
        return (
            "Check the data of that step and optimizer.learning_rate; "
            f"checkpoints: {', '.join(map(str, checkpoints)) or 'none'}. {other if self._policy == 'stop' else ''}"
            "To change the learning rate, start over with --fresh."
        )
