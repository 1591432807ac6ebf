"""Divergence policy: what happens when a loss or gradient is not finite, or a loss is a spike.

The loop passes a skip mask to each step: batches to skip in any case. Checkpoints name the batches of the mask, so that
a resumed run skips them again. Decisions use only results that have arrived, which are identical in every process.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from engine.base.errors import ConvoyError
from engine.cluster.exit_status import ExitStatus

MAX_BAD_IN_A_ROW = 10  # batches
SHOWN = 3  # arrays that a message names


@dataclass(frozen=True)
class BadBatch:
    """A batch whose update was skipped although the skip mask did not ask for it."""

    number: int
    problem: str
    """What is wrong with its step, as a part of a sentence."""


@dataclass(frozen=True)
class Series:
    """Updates that were skipped in a row, so many that an earlier update has corrupted the state."""

    start: int
    """First skipped batch, bad or in the skip mask."""
    first_bad: int
    """First bad batch."""


class BadBatches:
    """Collects bad batches until they are decided on. Results are identical in every process.

    `training/step.py` skips an update on the device if the loss or the gradient is not finite, or the loss is a spike:
    the batch is consumed, the state is unchanged.

    Args:
        names: names of the metrics, in the order of a step's results.
    """

    def __init__(self, names: Sequence[str]):
        self._columns = [names.index(name) for name in ("loss", "grad_norm")]
        self._skipped_column = names.index("skipped")
        self.undecided: list[BadBatch] = []
        """Bad batches without a decision."""
        self.in_a_row = 0
        """Consecutive skipped updates up to the latest result, those of the mask included."""
        self.latest: BadBatch | None = None
        """The latest bad batch, decided or not."""
        self.series: Series | None = None
        """Set once MAX_BAD_IN_A_ROW updates were skipped in a row."""

    def add_results(self, first: int, values: np.ndarray, skipped: Set[int]) -> list[BadBatch]:
        """Processes the metrics `[steps, names, (sum, weight)]` of the batches from `first` on; returns the bad ones.

        Args:
            first: number of the first batch.
            values: the metrics.
            skipped: the batches of the skip mask.
        """
        if not (self.in_a_row or values[:, self._skipped_column, 0].any()):
            return []  # the usual case
        found = []
        for number, metrics in enumerate(values, first):
            self.in_a_row = self.in_a_row + 1 if metrics[self._skipped_column, 0] else 0
            if self.in_a_row and number not in skipped:
                self.latest = BadBatch(number, _problem(*np.isfinite(metrics[self._columns, 0])))
                found.append(self.latest)
                self.undecided.append(self.latest)
                self._find_series(number)
        return found

    def _find_series(self, number: int) -> None:
        if self.in_a_row >= MAX_BAD_IN_A_ROW and self.series is None:
            start = number + 1 - self.in_a_row
            self.series = Series(start, min(bad.number for bad in self.undecided if bad.number >= start))

    def clear(self) -> None:
        """Forgets everything, since the run continues from an earlier step."""
        self.undecided, self.series, self.in_a_row = [], None, 0


def _problem(loss_is_finite: bool, norm_is_finite: bool) -> str:
    if not loss_is_finite:
        return "the loss is not finite"
    return "the loss is a spike" if norm_is_finite else "the gradient of a finite loss is not finite"


class Diverged(ConvoyError):
    """Training has diverged beyond what the policy allows; the last updates were skipped."""

    exit_code = ExitStatus.STOP
    everywhere = True


def list_names(names: Sequence[str]) -> str:
    """Returns the first `SHOWN` names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True)
class RollBack:
    """The run returns to its newest checkpoint and continues without some batches."""

    skipped: Sequence[int]
    message: str


@dataclass(frozen=True)
class End:
    """The run ends."""

    found: str
    """What was found, as sentences."""
    advice: str
    explained: int | None
    """Number of the batch that an explanation is about; None if there is nothing to explain."""

    def error(self, explanation: str = "") -> Diverged:
        """Returns the error that ends the run; `explanation` is a sentence about the batch."""
        return Diverged(f"{self.found}. {explanation}{self.advice}")


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
        names: names of the metrics, in the order of a step's results.
        on_message: called with sentences for the user.
    """

    def __init__(self, policy: str, names: Sequence[str], on_message: Callable[[str], None]):
        self._policy, self._say = policy, on_message
        self._bad = BadBatches(names)
        self.skipped: set[int] = set()
        """The batches of the skip mask: saved with the position in the data."""

    @property
    def pending(self) -> bool:
        """Whether there are bad results without a decision. While there are, nothing is saved."""
        return bool(self._bad.undecided) or self._bad.series is not None

    def resume(self, skipped: Iterable[int]) -> None:
        """Adds the skipped batches that a checkpoint names."""
        self.skipped |= set(skipped)

    def skip_mask(self, first: int, k: int) -> tuple[bool, ...]:
        """Returns whether to skip the update of each of the k batches from batch `first` on."""
        return tuple(first + i in self.skipped for i in range(k))

    def add_results(self, first: int, values: np.ndarray) -> None:
        """Processes the metrics `[steps, names, (sum, weight)]` of the batches from `first` on."""
        found = self._bad.add_results(first, values, self.skipped)
        if found and self._policy == "skip":
            self.skipped |= {bad.number for bad in found}
            self._bad.undecided.clear()
            for bad in found:
                text = f"step {bad.number + 1}: {bad.problem}; the update of batch {bad.number} is skipped"
                self._say(f"warning: {text}")

    def decide(
        self, step: int, checkpoints: Sequence[int], ending: bool, broken: Sequence[str] = ()
    ) -> RollBack | End | None:
        """Returns what the run has to do; None if it continues. Changes nothing.

        If it is None and `pending` is True, the next results have to show which batches are the problem.

        Args:
            step: number of finished steps, which is the number of the next batch; their results have arrived.
            checkpoints: steps that are saved, oldest first.
            ending: whether the run ends here, so that no good step can follow bad steps.
            broken: names of state arrays with values that are not finite, found before a save.
        """
        bad = self._bad
        if not (broken or self.pending):
            return None
        first = bad.undecided[0] if bad.undecided else bad.latest
        problem = "" if first is None else first.problem
        if broken:
            problem = f"{list_names(broken)} {'has' if len(broken) == 1 else 'have'} values that are not finite"
        number = bad.undecided[0].number if bad.undecided else step - 1
        found, advice = f"step {number + 1}: {problem}", self._advice(checkpoints)
        if self._policy == "rollback":
            series = Series(start=step - bad.in_a_row, first_bad=step) if broken else bad.series
            skipped = self._batches_to_skip(series, ending)
            saved = max(checkpoints, default=0)
            if not skipped:
                return None
            if skipped[0] < saved:
                found += f"; no batch is left to skip since the checkpoint of step {saved}"
                return End(found, advice, skipped[-1])
            batches = f"batch{'es' * (len(skipped) > 1)} {', '.join(map(str, skipped))}"
            return RollBack(skipped, f"{found}; rolling back to step {saved} to continue without {batches}")
        if self._policy == "skip" and not broken:
            found += f"; {MAX_BAD_IN_A_ROW} updates in a row were skipped"
        elif bad.undecided:
            found += "; the update was skipped"
        return End(found, advice, None if broken else number)

    def _batches_to_skip(self, series: Series | None, ending: bool) -> Sequence[int]:
        """Returns the batches to skip after a rollback; [] if the next results have to show them first."""
        if series is not None:
            count = series.first_bad - series.start + 1  # one more than the mask skips before the first bad batch
            return range(series.start - count, series.start)
        if self._bad.in_a_row and not ending:
            return []
        return [bad.number for bad in self._bad.undecided]

    def roll_back(self, decision: RollBack) -> None:
        """Adds the batches of a decision to the skip mask, and says so."""
        self.skipped |= set(decision.skipped)
        self._bad.clear()
        self._say(f"warning: {decision.message}")

    def _advice(self, checkpoints: Sequence[int]) -> str:
        other = "resilience.divergence=skip or rollback continues without such batches. "
        return (
            "Check the data of that step and optimizer.learning_rate; "
            f"checkpoints: {', '.join(map(str, checkpoints)) or 'none'}. {other if self._policy == 'stop' else ''}"
            "To change the learning rate, start over with --fresh."
        )
