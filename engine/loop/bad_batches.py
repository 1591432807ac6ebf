"""Finds bad batches in the results of steps: those whose update the step has skipped without being asked to.

`training/step.py` skips an update on the device if the loss or the gradient is not finite, or the loss is a spike: the
batch is consumed, the state is unchanged.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

MAX_BAD_IN_A_ROW = 10  # batches


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

    Args:
        names: of the metrics, in the order of a step's results.
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
