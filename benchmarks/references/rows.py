"""One line of the table of `python -m benchmarks.references`: an item that was compared with an outside program."""

import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of comparing one item.

    Args:
        item: what was compared, such as "AP at IoU 0.5 to 0.95, tied scores".
        cases: number of inputs, at least 1.
        largest_difference: largest absolute difference over the cases; infinite if a result differs in kind, such as a
            value in place of NaN or another shape.
        tolerance: largest difference that is allowed; 0 for equal bits.
    """

    item: str
    cases: int
    largest_difference: float
    tolerance: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether there were cases and the difference is within the tolerance; False for NaN."""
        return self.cases > 0 and self.largest_difference <= self.tolerance


def relative(found: npt.ArrayLike, wanted: npt.ArrayLike, floor: float = 0.0) -> float:
    """Returns the largest difference, relative to the largest number of `wanted`, or to `floor` if that is larger.

    Infinite if the shapes differ.
    """
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), floor))
