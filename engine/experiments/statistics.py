"""Intervals and p-values for differences between runs: by resampling groups of examples, or over seeds.

- Examples: bootstrap over groups of examples that are not independent, such as the frames of a scene; independent
  examples are groups of one. The interval is the expanded percentile interval of Hesterberg (2015), "What Teachers
  Should Know About the Bootstrap": it covers as often as a t interval does where groups are few.
- Seeds: t intervals. A bootstrap over three seeds would give their range, which covers 75 % of the time.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

FEWEST_GROUPS = 30
"""With fewer groups, a bootstrap says too little to be printed."""
RESOLVED = 20
"""With so many resamples beyond 0, their share is the p-value. With fewer, a normal distribution fits their tail."""
_BLOCK, _LARGEST = 256, 2**24  # resamples, and entries of an array of counts
_TAIL = 0.1  # share of the resamples that the normal distribution of the tail is fitted to


class Interval(NamedTuple):
    """An estimate with a confidence interval, and the p-value of the hypothesis that the true value is 0."""

    estimate: float
    low: float
    high: float
    p: float


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan)


def example_counts(group_of: np.ndarray, groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each example counts in each resample of groups, int64 `[resamples of a block, examples]`.

    Args:
        group_of: the group of each example, numbered from 0, `[examples]`.
        groups, resamples, seed: as for `group_counts`.
    """
    for counts in group_counts(groups, resamples, seed, min(_BLOCK, _LARGEST // max(1, len(group_of)))):
        yield counts[:, group_of]


def group_counts(groups: int, resamples: int, seed: int, block: int = _BLOCK) -> Iterator[np.ndarray]:
    """Yields how often each group is drawn in each resample, int64 `[resamples of a block, groups]`.

    Args:
        groups: number of groups, of which as many are drawn with replacement.
        resamples: number of resamples, over all blocks.
        seed: seed of the draws; the first resamples of a larger number are the same.
        block: most resamples of a block. The draws do not depend on it.
    """
    random, block = np.random.default_rng(seed), max(1, min(block, _LARGEST // max(1, groups)))
    for first in range(0, resamples, block):
        drawn = random.integers(0, groups, (block, groups))
        drawn += groups * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * groups).reshape(block, groups)[: resamples - first]


def bootstrap_interval(estimate: float, resampled: np.ndarray, groups: int, level: float = 0.95) -> Interval:
    """Returns the expanded percentile interval of an estimate, and the p-value that fits it.

    With fewer than RESOLVED resamples beyond 0, the p-value is that of a normal distribution through the tail of the
    resamples, so that it may be smaller than their number allows to count.

    Args:
        estimate: the value over all examples.
        resampled: its values over resamples, `[resamples]`; NaN where a resample has none.
        groups: number of groups that were resampled.
        level: confidence level.
    """
    values = np.sort(resampled[np.isfinite(resampled)])
    if groups < FEWEST_GROUPS or not math.isfinite(estimate) or len(values) < max(2, len(resampled) / 2):
        return NO_INTERVAL._replace(estimate=estimate)
    expansion = math.sqrt(groups / (groups - 1))
    tail = special.ndtr(special.stdtrit(groups - 1, (1 - level) / 2) * expansion)
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull")
    deviation = _deviation_of_zero(values) / expansion
    return Interval(estimate, float(low), float(high), float(min(1.0, 2 * special.stdtr(groups - 1, deviation))))


def _deviation_of_zero(values: np.ndarray) -> float:
    """Returns where 0 lies among sorted resamples, as a quantile of the standard normal distribution, at most 0."""
    count = len(values)
    beyond = count_beyond_zero(values)
    counted = float(special.ndtri(min(0.5, (beyond + 0.5) / (count + 1))))
    fitted = int(_TAIL * count)
    if beyond >= RESOLVED or fitted < 2 * RESOLVED:
        return counted
    inner = values[:fitted] if values[count // 2] > 0 else -values[: -fitted - 1 : -1]  # the tail that 0 is beyond
    inner = inner[RESOLVED - 1 :]
    normal = special.ndtri((np.arange(RESOLVED, fitted + 1) - 0.5) / count)
    centred = normal - normal.mean()
    deviation = float((centred * inner).sum() / (centred**2).sum())
    return float(normal[0] - inner[0] / deviation) if deviation > 0 else counted


def count_beyond_zero(values: np.ndarray) -> float:
    """Returns how many resamples are on the other side of 0 than most of them; those at 0 count half."""
    below = float(np.sum(values < 0) + 0.5 * np.sum(values == 0))
    return min(below, np.isfinite(values).sum() - below)


def relative_error_of_p(values: np.ndarray) -> float:
    """Returns about one standard error of the logarithm of a p-value that resamples give.

    Of a tail it was measured on 400 normal values: for p = 0.00025 it is 1.00, 0.48 and 0.30 with 1,000, 4,000 and
    16,000 resamples.
    """
    beyond = count_beyond_zero(values)
    return 1 / math.sqrt(beyond) if beyond >= RESOLVED else 30 / math.sqrt(len(values))


@np.errstate(invalid="ignore")  # a run that has diverged may have an infinite result
def t_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the t interval of the mean of differences, one for each seed; without limits for fewer than two."""
    values = np.asarray(differences, np.float64)
    estimate, freedom = float(values.mean()) if len(values) else math.nan, len(values) - 1
    if freedom < 1:
        return NO_INTERVAL._replace(estimate=estimate)
    return _from_t(estimate, float(values.std(ddof=1)) / math.sqrt(len(values)), freedom, level)


@np.errstate(invalid="ignore")
def welch_interval(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the interval of mean(second) - mean(first) for runs that share no seeds (Welch 1947)."""
    parts = [np.asarray(values, np.float64) for values in (first, second)]
    if not all(map(len, parts)):
        return NO_INTERVAL
    estimate = float(parts[1].mean() - parts[0].mean())
    if min(map(len, parts)) < 2:
        return NO_INTERVAL._replace(estimate=estimate)
    squares = [float(values.var(ddof=1)) / len(values) for values in parts]
    total = sum(squares)
    if not total:
        return _from_t(estimate, 0.0, 1, level)
    freedom = total**2 / sum(square**2 / (len(values) - 1) for square, values in zip(squares, parts, strict=True))
    return _from_t(estimate, math.sqrt(total), freedom, level)


def _from_t(estimate: float, error: float, freedom: float, level: float) -> Interval:
    """Returns a t interval. Seeds without any spread show nothing of it, unless both sides are the same."""
    if not error > 1e-12 * abs(estimate):  # also NaN; equal values have a spread of rounding
        return Interval(0.0, 0.0, 0.0, 1.0) if not estimate else NO_INTERVAL._replace(estimate=estimate)
    half = -float(special.stdtrit(freedom, (1 - level) / 2)) * error
    p = float(2 * special.stdtr(freedom, -abs(estimate / error)))
    return Interval(estimate, estimate - half, estimate + half, p)


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
