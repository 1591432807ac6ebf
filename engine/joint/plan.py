"""Plans that say which datasets a step takes, and how many earlier steps have taken a dataset."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from engine.base.errors import DataError
from engine.data.sampling.mixture_schedule import schedule, shares

MAX_PERIOD = 2**16
"""Most steps after which the plan of `Every` may repeat, so that all sets of datasets are known."""


class Plan(Protocol):
    """A pure function of the number of a step."""

    def taken(self, step: int) -> Sequence[str]:
        """Returns the sorted names of the datasets that a step, counted from 0, takes."""
        ...

    def before(self, step: int, name: str) -> int:
        """Returns the number of earlier steps that take a dataset."""
        ...

    def sets(self) -> list[tuple[str, ...]]:
        """Returns the different sets of datasets that steps take."""
        ...


class Every:
    """Takes each dataset in every n-th step: in the steps n, 2 n, ..., counted from 1.

    Args:
        every: name -> n, from 1.

    Raises:
        DataError: a step would take no dataset, or the numbers have no small common multiple.
    """

    def __init__(self, every: Mapping[str, int]):
        self._every = dict(sorted(every.items()))
        self._period = math.lcm(*self._every.values())
        text = ", ".join(f"{name} {n}" for name, n in self._every.items())
        if min(self._every.values()) > 1:
            raise DataError(
                f"engine.Joint: every = {text}: the first step would take no dataset. At least one dataset is taken in "
                "every step: leave it out of every."
            )
        if self._period > MAX_PERIOD:
            raise DataError(
                f"engine.Joint: every = {text} repeats after {self._period:,} steps, allowed are {MAX_PERIOD:,}. Use "
                "numbers that divide each other."
            )

    def taken(self, step: int) -> Sequence[str]:
        return [name for name, n in self._every.items() if (step + 1) % n == 0]

    def before(self, step: int, name: str) -> int:
        return step // self._every[name]

    def sets(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(tuple(self.taken(step)) for step in range(self._period)))


class Choose:
    """Takes one dataset in each step, in these proportions, spread as evenly as possible.

    Args:
        weights: name -> number above 0.
    """

    def __init__(self, weights: Mapping[str, float]):
        self._names = sorted(weights)
        counts = shares([weights[name] for name in self._names])
        self._source = schedule(counts)  # [period]
        # [period + 1, datasets]: steps of a period before this one that take each dataset
        taken = self._source[:, None] == np.arange(len(counts))
        self._before = np.concatenate([np.zeros((1, len(counts)), np.int64), np.cumsum(taken, axis=0)])

    def taken(self, step: int) -> Sequence[str]:
        return [self._names[self._source[step % len(self._source)]]]

    def before(self, step: int, name: str) -> int:
        period, at = divmod(step, len(self._source))
        number = self._names.index(name)
        return int(period * self._before[-1, number] + self._before[at, number])

    def sets(self) -> list[tuple[str, ...]]:
        return [(name,) for name in self._names]
