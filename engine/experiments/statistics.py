"""Intervals and p-values for differences between two runs, by resampling groups of examples.

A group holds examples that are not independent, such as the frames of a scene; independent examples are groups of one.
The interval is the expanded percentile interval of Hesterberg (2015), "What Teachers Should Know About the Bootstrap":
its level is adjusted so that it covers as often as a t interval does where groups are few.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

FEWEST_GROUPS = 30
"""With fewer groups, a bootstrap says too little to be printed."""


class Interval(NamedTuple):
    """An estimate with a confidence interval, and the p-value of the hypothesis that the true value is 0."""

    estimate: float
    low: float
    high: float
    p: float


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan)


def group_counts(groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each group is drawn in each resample, int64 `[resamples of a block, groups]`.

    Args:
        groups: number of groups, of which as many are drawn with replacement.
        resamples: number of resamples, over all blocks.
        seed: seed of the draws; the first resamples of a larger number are the same.
    """
    random, block = np.random.default_rng(seed), max(1, min(256, 2**24 // max(1, groups)))
    for first in range(0, resamples, block):
        drawn = random.integers(0, groups, (block, groups))
        drawn += groups * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * groups).reshape(block, groups)[: resamples - first]


def bootstrap_interval(estimate: float, resampled: np.ndarray, groups: int, level: float = 0.95) -> Interval:
    """Returns the expanded percentile interval of an estimate, and the p-value that fits it.

    Args:
        estimate: the value over all examples.
        resampled: its values over resamples, `[resamples]`; NaN where a resample has none.
        groups: number of groups that were resampled.
        level: confidence level.
    """
    values = np.sort(resampled[np.isfinite(resampled)])
    if groups < FEWEST_GROUPS or not math.isfinite(estimate) or len(values) < max(2, len(resampled) / 2):
        return Interval(estimate, math.nan, math.nan, math.nan)
    expansion = math.sqrt(groups / (groups - 1))
    tail = special.ndtr(special.stdtrit(groups - 1, (1 - level) / 2) * expansion)
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull")
    below = (np.sum(values < 0) + 0.5 * np.sum(values == 0) + 0.5) / (len(values) + 1)
    deviation = special.ndtri(min(below, 1 - below)) / expansion
    return Interval(estimate, float(low), float(high), float(min(1.0, 2 * special.stdtr(groups - 1, deviation))))


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values that are adjusted by Holm (1979), so that a bound on any of them holds for all together.

    NaN, which is no test, stays NaN and does not count.
    """
    values = np.asarray(p, np.float64)
    order = [at for at in np.argsort(values, kind="stable") if not math.isnan(values[at])]
    adjusted, largest = np.full(len(values), math.nan), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[at]))
        adjusted[at] = largest
    return adjusted.tolist()
