"""Results of metrics over a multiset of examples, from the states of single examples.

A resample says how often each example counts. Summed fields are added up with these counts, and collected entries are
repeated, so that the result is that of an evaluation of the resampled dataset, whatever the metric. A metric may have a
faster way to the same numbers, `Metric.resampler`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.metrics.metric import Metric, array_fields
from engine.metrics.resampling import Numbers, Resampler, resampler_of, weighted_sum
from engine.metrics.results import scalars
from engine.metrics.state import compute


def rows_of[M: Metric](metric: M, at: np.ndarray) -> M:
    """Returns the states of some examples of a metric whose fields are all `[examples, ...]`."""
    state: Any = metric
    fields = {name: np.asarray(getattr(metric, name))[at] for name, _ in array_fields(metric)}
    return dataclasses.replace(state, **fields)


def merged[M: Metric](metric: M, counts: np.ndarray) -> M:
    """Returns the state of a multiset of examples, as after an evaluation.

    Args:
        metric: a metric whose fields are all `[examples, ...]`.
        counts: how often each example counts, int64 `[examples]`.
    """
    return next(_states(metric, counts[None]))


def _states[M: Metric](metric: M, counts: np.ndarray) -> Iterator[M]:
    """Yields the state of each resample; counts are `[resamples, examples]`."""
    state: Any = metric
    arrays = {name: np.asarray(getattr(metric, name)) for name, _ in array_fields(metric)}
    sums = {name: _summed(counts, arrays[name]) for name, is_collected in array_fields(metric) if not is_collected}
    for number, row in enumerate(counts):
        fields = {name: sums[name][number] if name in sums else np.repeat(x, row, axis=0) for name, x in arrays.items()}
        yield dataclasses.replace(state, **fields)


def _summed(counts: np.ndarray, x: np.ndarray) -> np.ndarray:
    total = weighted_sum(counts, x)
    return total if x.dtype.kind == "f" else np.rint(total).astype(np.int64)


def results(name: str, metric: Metric, counts: npt.ArrayLike) -> dict[str, float]:
    """Returns the numbers of a metric over a multiset of examples, by full name; arguments as for `merged`."""
    return scalars(compute(name, merged(metric, np.asarray(counts, np.int64))))


class Repeated(Resampler):
    """Any metric: calls `compute` for each resample, with the collected entries of its examples repeated.

    Args:
        name: its name, for errors.
        metric: the metric, whose fields are all `[examples, ...]`.
    """

    def __init__(self, name: str, metric: Metric):
        self._name, self._metric = name, metric

    def subset(self, rows: np.ndarray) -> Self:
        return type(self)(self._name, rows_of(self._metric, rows))

    def numbers(self, counts: np.ndarray) -> Numbers:
        found = [scalars(compute(self._name, state)) for state in _states(self._metric, counts)]
        names = dict.fromkeys(name for row in found for name in row)
        short = {name: name.removeprefix(self._name).removeprefix("/") for name in names}
        return {short[name]: np.array([row.get(name, np.nan) for row in found]) for name in names}


def resampler(name: str, metric: Metric) -> Resampler:
    """Returns the numbers of a metric over resamples of its examples; its fields are all `[examples, ...]`."""
    return resampler_of(metric) or Repeated(name, metric)


def wide_fields[M: Metric](metric: M) -> M:
    """Returns a metric of single examples with its summed fields in float64 or int64, as `compute_each` gets them."""
    state: Any = metric
    fields = {
        name: np.asarray(getattr(metric, name)) for name, is_collected in array_fields(metric) if not is_collected
    }
    wide = {name: x.astype(np.float64 if x.dtype.kind == "f" else np.int64) for name, x in fields.items()}
    return dataclasses.replace(state, **wide)
