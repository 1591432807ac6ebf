"""Intervals and p-values for differences between runs, by resampling examples or groups, or over seeds.

- Examples: bootstrap over groups of examples, such as scenes, since frames of a scene are not independent. The interval
  is the expanded percentile interval of Hesterberg (2015), "What Teachers Should Know About the Bootstrap": its level
  is adjusted so that it covers as often as a t interval does where groups are few.
- Seeds: t intervals. A bootstrap over three seeds would give their range, which covers 75 % of the time.
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


def smallest_p(resamples: int, groups: int) -> float:
    """Returns the smallest p-value that so many resamples can give."""
    return float(2 * special.stdtr(groups - 1, special.ndtri(0.5 / (resamples + 1)) / math.sqrt(groups / (groups - 1))))


def t_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the t interval of the mean of differences, one for each seed; without limits for fewer than two."""
    values = np.asarray(differences, np.float64)
    estimate, freedom = float(values.mean()) if len(values) else math.nan, len(values) - 1
    if freedom < 1:
        return Interval(estimate, math.nan, math.nan, math.nan)
    return _from_t(estimate, float(values.std(ddof=1)) / math.sqrt(len(values)), freedom, level)


def welch_interval(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the interval of mean(second) - mean(first) for runs that share no seeds (Welch 1947)."""
    parts = [np.asarray(values, np.float64) for values in (first, second)]
    if not all(map(len, parts)):
        return NO_INTERVAL
    estimate = float(parts[1].mean() - parts[0].mean())
    if min(map(len, parts)) < 2:
        return Interval(estimate, math.nan, math.nan, math.nan)
    squares = [float(values.var(ddof=1)) / len(values) for values in parts]
    total = sum(squares)
    if not total:
        return _from_t(estimate, 0.0, 1, level)
    freedom = total**2 / sum(square**2 / (len(values) - 1) for square, values in zip(squares, parts, strict=True))
    return _from_t(estimate, math.sqrt(total), freedom, level)


def _from_t(estimate: float, error: float, freedom: float, level: float) -> Interval:
    if not error:
        return Interval(estimate, estimate, estimate, 1.0 if not estimate else 0.0)
    half = -float(special.stdtrit(freedom, (1 - level) / 2)) * error
    return Interval(
        estimate, estimate - half, estimate + half, float(2 * special.stdtr(freedom, -abs(estimate / error)))
    )


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
