"""Compares two variants on the same examples: a paired bootstrap over examples, or over groups of them.

A resample draws examples with replacement, the same ones for every run, and any metric is computed anew from their
states (`resampling.py`). Each part of an evaluation starts with the same number of resamples. Those whose p-value is
too near to the level to decide get more.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from engine.experiments import statistics
from engine.experiments.comparison import SURE, WHOLE, Basis, Difference
from engine.experiments.joined import Joined
from engine.experiments.resampling import Repeated, resampler
from engine.experiments.statistics import Interval
from engine.metrics.direction import higher_is_better
from engine.metrics.resampling import Resampler

MORE = (3, 12)
"""Additional resamples of a part that is not decided, in multiples of the first ones: 4, and then 16 times as many."""
MOST_DRAWN = 5 * 10**7
"""Most examples that additional resamples draw from a part, over all of them."""
ROUNDING = 1e-12  # relative
THREADS = 8  # most threads; NumPy computes without the lock of the interpreter

type Numbers = dict[tuple[str, str], np.ndarray]
"""(metric, name of the number) -> its values `[resamples]`."""


@dataclass
class _Side:
    """The runs of a variant over some examples: metric -> its resampler, of each run."""

    runs: Sequence[Mapping[str, Resampler]]

    def subset(self, rows: np.ndarray) -> "_Side":
        return _Side([{name: x.subset(rows) for name, x in run.items()} for run in self.runs])

    def each(self, counts: np.ndarray, metrics: Sequence[str]) -> list[Numbers]:
        """Returns the numbers of each run."""
        return [
            {
                (metric, "/".join(filter(None, (metric, key)))): values
                for metric in metrics
                for key, values in run[metric].numbers(counts).items()
            }
            for run in self.runs
        ]


@dataclass
class _Part:
    """All examples of an evaluation, or those of a slice.

    Attributes:
        name: name of the slice, or WHOLE.
        groups: number of groups.
        group_of: the group of each example, `[examples]`.
        whole: both variants over all examples.
        rows: which of them the part has, increasing.
        draws: values of the differences over the resamples so far.
    """

    name: str
    groups: int
    group_of: np.ndarray
    whole: tuple[_Side, _Side]
    rows: np.ndarray
    draws: Numbers = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return len(self.rows)

    @property
    def sides(self) -> tuple[_Side, _Side]:
        """Both variants over these examples; not kept, since many slices may be large together."""
        if self.name == WHOLE:
            return self.whole
        first, second = self.whole
        return first.subset(self.rows), second.subset(self.rows)

    @cached_property
    def values(self) -> tuple[list[Numbers], list[Numbers]]:
        """The numbers of each run of both variants, over these examples: `[1]`."""
        once = np.ones((1, self.examples), np.int64)
        first, second = (side.each(once, list(side.runs[0])) for side in self.sides)
        return first, second

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """The numbers that all runs have."""
        first, *others = (run for side in self.values for run in side)
        return [name for name in first if all(name in other for other in others)]

    def draw(self, resamples: int, seed: int, metrics: Sequence[str]) -> None:
        """Adds resamples to `draws`."""
        if self.groups < statistics.FEWEST_GROUPS:
            return
        found: list[tuple[Numbers, int]] = []
        sides = self.sides
        for counts in statistics.example_counts(self.group_of, self.groups, resamples, seed):
            first, second = (self._means(side, counts, metrics) for side in sides)
            values = {name: _difference_of(first[name], second[name]) for name in first if name in second}
            found.append((values, len(counts)))
        for name in dict.fromkeys(name for values, _ in found for name in values):
            drawn = [values.get(name, np.full(count, np.nan)) for values, count in found]
            self.draws[name] = np.concatenate([self.draws.get(name, np.zeros(0)), *drawn])

    @staticmethod
    def _means(side: _Side, counts: np.ndarray, metrics: Sequence[str]) -> Numbers:
        runs = side.each(counts, metrics)
        with np.errstate(invalid="ignore"):
            common = [name for name in runs[0] if all(name in run for run in runs)]
            return {name: np.mean([run[name] for run in runs], axis=0) for name in common}

    def interval(self, number: tuple[str, str]) -> Interval:
        first, second = (np.mean([run[number][0] for run in side]) for side in self.values)
        with np.errstate(invalid="ignore"):
            estimate = float(_difference_of(first, second))
        return statistics.bootstrap_interval(estimate, self.draws.get(number, np.zeros(0)), self.groups)


class Paired:
    """The parts of an evaluation in two variants.

    Args:
        variant: index of the second variant in the comparison.
        joined: the metrics of their examples.
        group: tag whose values are resampled; "" for single examples.
    """

    def __init__(self, variant: int, joined: Joined, group: str = ""):
        self._variant, self._joined = variant, joined
        first, second = joined.sides
        metrics = [name for name in first[0].metrics if all(name in run.metrics for run in (*first, *second))]
        self._metrics = {name: first[0].metrics[name] for name in metrics}
        sides = [
            _Side([{name: resampler(name, run.metrics[name]) for name in metrics} for run in side])
            for side in (first, second)
        ]
        groups = joined.groups(group)
        self.parts = [
            _Part(name, *_renumbered(groups, rows), (sides[0], sides[1]), rows)
            for name, rows in ((WHOLE, np.arange(len(groups))), *joined.slice_rows())
            if len(rows)
        ]
        is_plain = not any(isinstance(x, Repeated) for side in sides for run in side.runs for x in run.values())
        self._threads = min(THREADS, os.cpu_count() or 1) if is_plain else 1  # code of users may need one thread

    def values(self) -> Iterator[tuple[str, int, str, bool | None, list[float], list[float]]]:
        """Yields part, examples, number, its direction, and its value in each run of the first and second variant."""
        for part in self.parts:
            for number in part.numbers:
                first, second = ([float(run[number][0]) for run in side] for side in part.values)
                yield part.name, part.examples, number[1], self._direction(number), first, second

    def differences(self, resamples: int, on_part: Callable[[], None] = lambda: None) -> list[Difference]:
        """Returns the differences of all numbers and parts.

        Args:
            resamples: resamples of each part, and more where they are needed.
            on_part: called after each part.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(lambda part: part.draw(resamples, 0, list(self._metrics)), self.parts):
                on_part()
            for stage, factor in enumerate(MORE, start=1):
                more = [(part, factor * resamples, stage, metrics) for part, metrics in self._undecided()]
                more = [item for item in more if item[1] * item[0].examples <= MOST_DRAWN]
                list(pool.map(lambda item: item[0].draw(*item[1:]), more))
        return [self._difference(part, number) for part in self.parts for number in part.numbers]

    def _undecided(self) -> list[tuple[_Part, list[str]]]:
        """Returns the parts whose resamples are too few to say on which side of the level a p-value is, by metric."""
        found: dict[int, set[str]] = {}
        for number in self.parts[0].numbers if self.parts else ():
            parts = [(at, part) for at, part in enumerate(self.parts) if number in part.draws]
            p = {at: part.interval(number).p for at, part in parts}
            slices = [at for at in p if self.parts[at].name != WHOLE]
            p |= dict(zip(slices, statistics.holm([p[at] for at in slices]), strict=True))
            for at, part in parts:
                margin = math.exp(2 * statistics.relative_error_of_p(part.draws[number]))
                if SURE / margin < p[at] < SURE * margin:
                    found.setdefault(at, set()).add(number[0])
        return [(self.parts[at], sorted(metrics)) for at, metrics in sorted(found.items())]

    def _difference(self, part: _Part, number: tuple[str, str]) -> Difference:
        interval = part.interval(number)
        first, second = ([float(run[number][0]) for run in side] for side in part.values)
        has_interval = not math.isnan(interval.low)
        return Difference(
            variant=self._variant,
            evaluation=self._joined.evaluation,
            part=part.name,
            metric=number[1],
            examples=part.examples,
            groups=part.groups,
            first=float(np.mean(first)),
            second=float(np.mean(second)),
            first_values=first,
            second_values=second,
            higher_is_better=self._direction(number),
            basis=Basis.EXAMPLES if has_interval else Basis.NONE,
            interval=interval,
            resamples=len(part.draws[number]) if has_interval else 0,
        )

    def _direction(self, number: tuple[str, str]) -> bool | None:
        metric, name = number
        return higher_is_better(name, self._metrics[metric])


def _difference_of(first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """Returns second - first. Where only rounding differs, as in means over seeds, it is 0, and no sign of a change."""
    with np.errstate(invalid="ignore"):  # both may be infinite
        found = np.subtract(second, first)
    is_rounding = np.abs(found) <= ROUNDING * np.maximum(np.abs(first), np.abs(second))
    return np.where(is_rounding & np.isfinite(found), 0.0, found)


def _renumbered(groups: np.ndarray, rows: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns the number of groups of some examples, and their groups, numbered from 0."""
    found, group_of = np.unique(groups[rows], return_inverse=True)
    return len(found), group_of
