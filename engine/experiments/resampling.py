"""Results of metrics over a multiset of examples, from the states of single examples.

A resample says how often each example counts. Summed fields are added up with these counts, and collected entries are
repeated, so that the result is that of an evaluation of the resampled dataset, whatever the metric.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.metrics.mean import Mean
from engine.metrics.metric import Metric, array_fields
from engine.metrics.results import scalars
from engine.metrics.state import compute


def merged[M: Metric](metric: M, counts: np.ndarray) -> M:
    """Returns the state of a multiset of examples, as after an evaluation.

    Args:
        metric: a metric whose fields are all `[examples, ...]`.
        counts: how often each example counts, int64 `[examples]`.
    """
    fields: dict[str, Any] = {}
    for name, is_collected in array_fields(metric):
        x = np.asarray(getattr(metric, name))
        if is_collected:
            fields[name] = np.repeat(x, counts, axis=0)
        else:
            wide = np.float64 if x.dtype.kind == "f" else np.int64
            fields[name] = np.tensordot(counts.astype(wide), x.astype(wide), axes=1)[()]
    state: Any = metric
    return dataclasses.replace(state, **fields)


def results(name: str, metric: Metric, counts: npt.ArrayLike) -> dict[str, float]:
    """Returns the numbers of a metric over a multiset of examples, by full name; arguments as for `merged`."""
    return scalars(compute(name, merged(metric, np.asarray(counts, np.int64))))


def resampled(name: str, metric: Metric, counts: np.ndarray) -> Iterator[dict[str, float]]:
    """Yields the numbers of a metric over each of several multisets of examples.

    Args:
        name: name of the metric.
        metric: a metric whose fields are all `[examples, ...]`.
        counts: how often each example counts in each resample, int64 `[resamples, examples]`.
    """
    if type(metric) is Mean:  # the usual case, without a call for each resample
        total, weight = (counts @ np.asarray(x, np.float64) for x in (metric.total, metric.weight))
        with np.errstate(divide="ignore", invalid="ignore"):
            yield from ({name: float(value)} for value in total / weight)
        return
    for row in counts:
        yield results(name, metric, row)
