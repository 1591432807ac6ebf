"""Results of metrics over split and padded batches, without a model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.metrics.metric import Metric
from engine.metrics.state import MetricStates, compute


def results(metric: Metric, size: int | None = None, name: str = "m") -> dict[str, Any]:
    """Returns the results of a metric of one batch, split into batches of `size` rows; the last is padded with NaN."""
    arrays = jax.tree.map(np.asarray, metric)
    count = len(jax.tree.leaves(arrays)[0])
    size = size or count
    states = MetricStates({name: jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), arrays)})
    merger = states.merger()
    for start in range(0, count, size):
        rows = np.arange(start, start + size) < count
        batch = jax.tree.map(lambda x, start=start: _padded(x[start : start + size], size), arrays)
        merger.add(states.reduce({name: batch}, jnp.asarray(rows, jnp.float32)))
    return compute(name, merger.metrics()[name])


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    filler: Any = np.nan if x.dtype.kind == "f" else 1
    return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), filler, x.dtype)])
