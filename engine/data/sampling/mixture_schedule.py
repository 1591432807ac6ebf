"""Periodic schedules that assign a source of a mixture to each position.

After any n positions, the count of each source differs from n * share / period by less than 1. This is the
proportionate schedule of Baruah et al. 1996: read m = 0, 1 ... of a source gets a position from
floor(m * period / share) to ceil((m + 1) * period / share) - 1; of the reads allowed at a position, the one with the
earliest deadline is taken.
"""

import heapq
import math
from fractions import Fraction

import numpy as np

from engine.base.errors import DataError

PERIOD = 10_000  # positions at most: weights that are not simple fractions are rounded to 1/10,000 of their sum


def shares(weights: list[float]) -> np.ndarray:
    """Returns integer shares int64 `[sources]` in the proportions of the weights; their sum is the period.

    A weight of 0 has the share 0.

    Raises:
        DataError: a weight is so small that its share of the longest period rounds to 0.
    """
    total = sum(map(Fraction, weights))
    parts = [(Fraction(weight) / total).limit_denominator(10**6) for weight in weights]  # a user's 0.1 means 1/10
    period = min(PERIOD, math.lcm(*(part.denominator for part in parts)))
    ends = [round(sum(parts[: number + 1]) * period) for number in range(len(parts))]
    found = np.diff(ends, prepend=0)
    if (found[np.array(weights) > 0] < 1).any():
        raise DataError(
            f"Mixture: weight {min(filter(None, weights))} of {sum(weights)} in total is less than 1 in {PERIOD:,} "
            "examples. Remove that source, or give it a larger weight."
        )
    return found


def schedule(counts: np.ndarray) -> np.ndarray:
    """Returns the source int64 `[period]` of each position of a period, for the shares `[sources]`."""
    period = int(counts.sum())
    jobs = []  # (first position, deadline, source)
    for number, count in enumerate(counts.tolist()):
        jobs += [(m * period // count, -(-(m + 1) * period // count), number) for m in range(count)]
    jobs.sort(reverse=True)
    found, waiting = [], []
    for position in range(period):
        while jobs and jobs[-1][0] <= position:
            heapq.heappush(waiting, jobs.pop()[1:])
        found.append(heapq.heappop(waiting)[1])
    return np.array(found)
