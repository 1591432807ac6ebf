"""Results of one run with 95 % intervals, of whole evaluations and of slices, by resampling examples or groups."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.experiments import statistics
from engine.experiments.resampling import resampler
from engine.metrics.direction import higher_is_better
from engine.metrics.slices import Examples

RESAMPLES = 2000
WHOLE = ""
"""Name of the part that has all examples."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        evaluation: name of the evaluation.
        part: a slice, or WHOLE.
        metric: name of the number, such as "ap/car".
        value: its value.
        low: lower limit of the interval; NaN if there is none.
        high: upper limit, likewise.
        examples: number of examples; None if not known.
        groups: number of groups that were resampled; None if not known.
        higher_is_better: whether a larger value is better; None if not known.
    """

    evaluation: str
    part: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    examples: int | None = None
    groups: int | None = None
    higher_is_better: bool | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there were enough groups for an interval."""
        return not math.isnan(self.low)


def scores(
    evaluation: str,
    found: Examples,
    group: str = "",
    resamples: int = RESAMPLES,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> list[Score]:
    """Returns all numbers of an evaluation, of all examples and of each slice, with intervals.

    Args:
        evaluation: its name.
        found: the metrics of its examples.
        group: tag whose values are resampled, such as the scene of a frame; "" for single examples.
        resamples: number of resamples.
        on_part: called with the number of finished parts and of all.
    """
    count = len(found.indices)
    groups = np.unique(found.tags[group], return_inverse=True)[1] if group in found.tags else np.arange(count)
    parts = [(WHOLE, np.arange(count)), *((name, np.flatnonzero(mask)) for name, mask in found.slices.items())]
    whole = {name: resampler(name, metric) for name, metric in found.metrics.items()}
    results = []
    for number, (part, rows) in enumerate(parts, start=1):
        names, group_of = np.unique(groups[rows], return_inverse=True)
        for metric, state in whole.items() if len(rows) else ():
            some = state if part == WHOLE else state.subset(rows)
            values = some.numbers(np.ones((1, len(rows)), np.int64))
            draws: dict[str, list[np.ndarray]] = {key: [] for key in values}
            enough = len(names) >= statistics.FEWEST_GROUPS
            for counts in statistics.example_counts(group_of, len(names), resamples if enough else 0, seed=0):
                drawn = some.numbers(counts)
                for key, each in draws.items():
                    each.append(drawn.get(key, np.full(len(counts), np.nan)))
            for key, value in values.items():
                joined = np.concatenate([np.zeros(0), *draws[key]])
                interval = statistics.bootstrap_interval(float(value[0]), joined, len(names))
                full = "/".join(filter(None, (metric, key)))
                better = higher_is_better(full, found.metrics[metric])
                size = (len(rows), len(names))
                results.append(
                    Score(evaluation, part, full, float(value[0]), interval.low, interval.high, *size, better)
                )
        on_part(number, len(parts))
    return results
