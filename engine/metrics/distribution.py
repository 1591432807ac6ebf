"""The distribution of a value over all examples: quantiles and histogram."""

from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric, collected
from engine.metrics.results import Bins
from engine.metrics.values import real_array, rows_and_mask


class Quantiles(Metric):
    """Exact quantiles, interpolated linearly: method 7 of Hyndman and Fan 1996 (doi:10.2307/2684934), as in numpy."""

    values: jax.Array = collected()
    kept: jax.Array = collected()
    q: tuple[float, ...] = (0.5, 0.9, 0.99)

    @classmethod
    def of(cls, values: ArrayLike, where: ArrayLike | None = None, q: Sequence[float] = (0.5, 0.9, 0.99)) -> Self:
        """Returns the quantiles `q`, in 0..1, of values `[batch, ...]`. `where` is a mask; it keeps values > 0."""
        if wrong := [x for x in q if not 0 <= x <= 1]:
            raise TaskError(f"Quantiles.of: q has {wrong[0]:g}. Allowed: 0 to 1, such as 0.9 for the 90th percentile.")
        return cls(*rows_and_mask("Quantiles", values, where), tuple(q))

    def compute(self) -> dict[str, float]:
        """Returns the quantiles by name, such as "p50" and "p99.9"; NaN if there are no values."""
        values = np.asarray(self.values, np.float64)[self.kept]
        found = np.quantile(values, self.q) if values.size else np.full(len(self.q), np.nan)
        return {f"p{100 * q:g}": float(value) for q, value in zip(self.q, found, strict=True)}


class Histogram(Metric):
    """Weights of values in given bins. As in numpy, the last bin includes its upper edge; other values are left out."""

    counts: jax.Array
    edges: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike, edges: Sequence[float], where: ArrayLike | None = None) -> Self:
        """Returns the histogram of values `[batch, ...]` over increasing `edges`; `where` as in `Mean.of`."""
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise TaskError(f"Histogram.of: edges = {list(edges)}. Allowed: two or more increasing numbers.")
        values, bounds = real_array(values, "Histogram.of needs values"), jnp.asarray(edges, jnp.float32)
        bins = jnp.searchsorted(bounds, values, side="right") - (values == bounds[-1]) - 1
        inside = jnp.arange(len(edges) - 1) == bins[..., None]  # [batch, ..., bins]
        mask = None if where is None else jnp.reshape(where, jnp.shape(where) + (1,) * (inside.ndim - jnp.ndim(where)))
        counts = inside if mask is None else jnp.where(inside & (mask != 0), mask, 0)
        rows = counts.reshape(len(counts), -1, len(edges) - 1).sum(1)
        return cls(rows, tuple(float(edge) for edge in edges))

    def compute(self) -> Any:
        """Returns `Bins`."""
        return Bins(np.array(self.edges), np.asarray(self.counts))
