"""Divergence policy: what happens when a loss or gradient is not finite, or a loss is a spike.

The guard in `training/step.py` has already held such an update back on the device: the batch is consumed and the state
stays as it was. A batch is bad if the guard held it back by itself; a skipped batch is held back in every attempt that
resumes from a checkpoint that names it. Step n + 1 consumes batch n.

stop      The first bad batch ends the run.
skip      A bad batch is skipped. IN_A_ROW bad batches in a row end the run.
rollback  The run returns to its newest checkpoint. If a good step followed the bad batches, these are skipped. If
          IN_A_ROW are bad in a row, an update that looked good has spoilt the state: they are read again, and the batch
          before them is skipped, then 2, 4, 8 before them, until these reach back to the checkpoint.

Decisions use only results that have arrived, which are the same at the same step in every process.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError

IN_A_ROW = 10  # batches


class Diverged(ConvoyError):
    """Training has diverged beyond what the policy allows; the last updates were held back."""

    exit_code = ExitStatus.STOP
    everywhere = True


class Divergence:
    """The policy of one attempt.

    Args:
        policy: `resilience.divergence`.
        names: of the metrics, as a step has them.
        on_message: called with sentences for the user.
    """

    def __init__(self, policy: str, names: Sequence[str], on_message: Callable[[str], None]):
        self._policy, self._say = policy, on_message
        self._loss, self._norm, self._skipped = (names.index(name) for name in ("loss", "grad_norm", "skipped"))
        self.skipped: set[int] = set()
        """The batches whose update this run holds back: a part of its position in the data."""
        self._bad: list[int] = []  # that are not decided about
        self._what = ""  # is wrong with the first of them; where each is decided about at once, with the newest
        self._in_a_row = 0  # updates held back up to the newest result, by the mask or by the guard
        self._spoilt: int | None = None  # batch before which the state was spoilt, where a long row says so
        self._row_starts = 0  # batch with which the row that says so begins
        self.asks = False
        """Whether there is something that `rollback` may decide about."""

    def resume(self, skipped: Iterable[int]) -> None:
        """Takes the batches that the position of a checkpoint names; those that are known already stay."""
        self.skipped |= set(skipped)

    def skips(self, step: int, k: int) -> tuple[bool, ...]:
        """Returns whether to skip the update of each of the k batches from `step` on."""
        return tuple(step + i in self.skipped for i in range(k))

    def take(self, first: int, values: np.ndarray) -> None:
        """Takes the metrics `[steps, names, 2]` of the batches from `first` on, as they are read."""
        if not (self._in_a_row or values[:, self._skipped, 0].any()):
            return  # as nearly always
        for batch, row in enumerate(values, first):
            self._in_a_row = self._in_a_row + 1 if row[self._skipped, 0] else 0
            if self._in_a_row and batch not in self.skipped:
                self._note(batch, bool(np.isfinite(row[[self._loss, self._norm], 0]).all()))

    def _note(self, batch: int, finite: bool) -> None:
        """Takes a bad batch."""
        if not self._bad:
            self._what = "the loss is a spike" if finite else "the loss or its gradient is not finite"
        if self._policy == "skip":
            self.skipped.add(batch)
            self._say(f"warning: step {batch + 1}: {self._what}; the update of batch {batch} is skipped")
        else:
            self._bad.append(batch)
        if self._in_a_row >= IN_A_ROW and self._spoilt is None:
            self._row_starts = batch + 1 - self._in_a_row
            self._spoilt = min((b for b in self._bad if b >= self._row_starts), default=self._row_starts)
        self.asks = bool(self._bad) or self._spoilt is not None

    def rollback(self, step: int, checkpoints: Sequence[int], ending: bool, broken: Sequence[str] = ()) -> bool:
        """Whether the run has to go back to its newest checkpoint; `skipped` then says without which batches.

        Where it does not and `asks` stays, nothing may be saved: it is not known yet whether the state is spoilt.

        Args:
            step: the loop's; the results of all steps before it have arrived.
            checkpoints: steps that are saved, oldest first.
            ending: whether the run ends here, so that no good step can follow bad ones.
            broken: parts of the state that are to be saved and not finite although no loss has shown it.

        Raises:
            Diverged: the policy has no other way.
        """
        if broken:
            self._what = f"{broken[0]} holds numbers that are not finite"
            self._spoilt, self._row_starts, self.asks = step, step - self._in_a_row, True
        if not self.asks:
            return False
        found = f"step {self._bad[0] + 1 if self._bad else step}: {self._what}"
        if self._policy == "rollback":
            return self._roll_back(found, max(checkpoints, default=0), ending)
        if self._policy == "skip" and not broken:
            found += f"; {IN_A_ROW} updates in a row were skipped"
        elif self._bad:
            found += "; the update was held back"
        raise Diverged(f"{found}. {_advice(checkpoints)}")

    def _roll_back(self, found: str, saved: int, ending: bool) -> bool:
        if self._spoilt is not None:
            count = self._spoilt - self._row_starts + 1  # one more than are skipped there already: 1, 2, 4, 8
            chosen = list(range(self._row_starts - count, self._row_starts))
        elif self._in_a_row and not ending:
            return False  # it is not known yet whether these batches did it
        else:
            chosen = self._bad
        if chosen[0] < saved:
            raise Diverged(
                f"{found}, also without the batches since the checkpoint of step {saved}. {_advice([saved])}"
            )
        self.skipped |= set(chosen)
        self._say(
            f"warning: {found}; going back to step {saved}, to go on without batch{'es' * (len(chosen) > 1)} "
            f"{', '.join(map(str, chosen))}"
        )
        self._bad, self._spoilt, self._in_a_row, self.asks = [], None, 0, False
        return True


def _advice(checkpoints: Sequence[int]) -> str:
    return (
        "Look at the data of that step and at optimizer.learning_rate; "
        f"checkpoints: {', '.join(map(str, checkpoints)) or 'none'}. resilience.divergence=skip or rollback goes on "
        "without such batches. With another learning rate start anew: --fresh."
    )
