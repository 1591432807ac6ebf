"""Schedules of mixtures: which source is read at each place of a period.

Owns: whole shares for weights, and their even spread. Does not own: the sources (`mixture.py`).

A schedule is periodic and exact: after any n places the count of each source differs from n * share / period by less
than 1. It is the proportionate schedule of Baruah et al. 1996: turn m = 0, 1 ... of a source lies between places
floor(m * period / share) and ceil((m + 1) * period / share), and of the turns that may come the earliest deadline does.
"""

import heapq
import math
from fractions import Fraction

import numpy as np

from engine.config.errors import DataError

PERIOD = 10_000  # places, at most: weights that are no simple fractions are kept to 1/10,000 of all


def shares(weights: list[float]) -> np.ndarray:
    """Returns whole shares int64 `[sources]`, whose sum is the period, in the proportions of weights.

    Raises:
        DataError: a weight so small that it has no share of the longest period.
    """
    total = sum(map(Fraction, weights))
    parts = [(Fraction(weight) / total).limit_denominator(10**6) for weight in weights]  # 0.1 is meant as 1/10
    period = min(PERIOD, math.lcm(*(part.denominator for part in parts)))
    ends = [round(sum(parts[: number + 1]) * period) for number in range(len(parts))]
    found = np.diff(ends, prepend=0)
    if found.min() < 1:
        raise DataError(
            f"Mixture: weight {min(weights)} of {sum(weights)} in all is less than 1 in {PERIOD:,} examples. "
            "Leave that source out, or give it a larger weight."
        )
    return found


def schedule(counts: np.ndarray) -> np.ndarray:
    """Returns the source int64 `[period]` of each place of a period, for the shares of the sources `[sources]`."""
    period = int(counts.sum())
    jobs = []  # (first place, deadline, source)
    for number, count in enumerate(counts.tolist()):
        jobs += [(m * period // count, -(-(m + 1) * period // count), number) for m in range(count)]
    jobs.sort(reverse=True)
    found, waiting = [], []
    for place in range(period):
        while jobs and jobs[-1][0] <= place:
            heapq.heappush(waiting, jobs.pop()[1:])
        found.append(heapq.heappop(waiting)[1])
    return np.array(found)
