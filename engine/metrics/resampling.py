"""Numbers of a metric over many resamples of its examples at once, where that is faster than one `compute` for each.

A resample says how often each example counts. `Metric.resampler` returns such an object. Its results are those of
`compute` on a dataset that holds each example as often.
"""

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from engine.metrics.metric import Metric

type Numbers = dict[str, np.ndarray]
"""Name of a number, as in the dict that `compute` returns ("" for the metric itself, "car/iou") -> `[resamples]`."""


class Resampler:
    """Base class: the examples of a metric, in the form in which their resamples are computed."""

    def subset(self, rows: np.ndarray) -> Self:
        """Returns the same for some of the examples, given by increasing indices, such as those of a slice."""
        raise NotImplementedError

    def numbers(self, counts: np.ndarray) -> Numbers:
        """Returns the numbers over each resample.

        Args:
            counts: how often each example counts in each resample, int64 `[resamples, examples]`.
        """
        raise NotImplementedError


class Sums(Resampler):
    """A metric whose fields are all summed.

    Args:
        fields: name of a field -> its entries, `[examples, ...]`.
        compute: returns the numbers of fields that are summed over the examples of each resample, `[resamples, ...]`.
            A division by zero gives NaN or infinity without a warning.
    """

    def __init__(self, fields: Mapping[str, np.ndarray], compute: Callable[[Mapping[str, np.ndarray]], Numbers]):
        self._fields = {name: np.asarray(x) for name, x in fields.items()}
        self._compute = compute

    def subset(self, rows: np.ndarray) -> Self:
        return type(self)({name: x[rows] for name, x in self._fields.items()}, self._compute)

    def numbers(self, counts: np.ndarray) -> Numbers:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._compute({name: weighted_sum(counts, x) for name, x in self._fields.items()})


def weighted_sum(counts: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the sum of entries `[examples, ...]` over each resample, float64 `[resamples, ...]`."""
    # In float64 also for integers, whose products NumPy computes without BLAS: exact below 2^53. An example that is
    # not drawn must not count, even if its entry is NaN.
    flat = x.reshape(len(x), -1).astype(np.float64)
    odd = ~np.isfinite(flat).all(1)
    found = counts.astype(np.float64) @ np.where(odd[:, None], 0, flat)
    if odd.any():
        for row in np.flatnonzero(odd):
            found += np.where(counts[:, row, None] > 0, counts[:, row, None] * flat[row], 0)
    return found.reshape(len(counts), *x.shape[1:])


def resampler_of(metric: Metric) -> Resampler | None:
    """Returns the resampler of a metric whose fields are all `[examples, ...]`; None if its class has none.

    A resampler of a base class does not count where a class below it defines `compute` anew.
    """
    order = type(metric).__mro__
    computes, resamples = (
        next(at for at, kind in enumerate(order) if name in vars(kind)) for name in ("compute", "resampler")
    )
    return metric.resampler() if resamples <= computes else None
