"""Thins out curves, so that a report of long runs stays small and opens at once."""

import numpy as np

TOTAL_POINTS = 160_000
"""Points of all curves of a report."""
MOST, FEWEST = 1500, 120
"""Points of a curve: more than a chart has pixels, and the least that shows its shape."""


def points_of_each(curves: int) -> int:
    """Returns how many points each of so many curves may have."""
    return max(FEWEST, min(MOST, TOTAL_POINTS // max(1, curves)))


def chosen(steps: np.ndarray, values: np.ndarray, points: int) -> np.ndarray:
    """Returns the indices of at most `points` points of a curve, in order; all if it has no more.

    The steps are divided into buckets of equal width. Of each bucket the smallest and the largest value are kept, and
    of the curve the first and the last point, so that no spike is lost (the MinMax aggregation that Jugel et al. 2014,
    "M4: A Visualization-Oriented Time Series Data Aggregation", compare with their M4).

    Args:
        steps: increasing, `[n]`.
        values: finite, `[n]`.
        points: at least 4.
    """
    if len(steps) <= points:
        return np.arange(len(steps))
    buckets = (points - 2) // 2
    along = steps.astype(np.float64) - float(steps[0])
    bucket = np.minimum((along * (buckets / along[-1])).astype(np.int64), buckets - 1)
    order = np.lexsort((values, bucket))
    first = np.flatnonzero(np.diff(bucket[order], prepend=-1))
    last = np.append(first[1:], len(order)) - 1
    return np.unique(np.concatenate([[0], order[first], order[last], [len(steps) - 1]]))
