"""Metrics as (sum, weight): summed exactly over microbatches, devices, hosts and batches, and divided once.

Both have one entry for each example, `[batch]`, so that padded rows can be left out. Scalars that are already summed
are accepted, too; an evaluation then runs its last batch at its real size instead of padding it.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from engine.config.errors import TaskError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean before its division: the sum `total` and its `weight`, each `[batch]` or a scalar."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None) -> "Mean":
        """Returns the weighted mean of values, summed over each example.

        Args:
            values: `[batch, ...]`; values of weight 0 are ignored and may be NaN.
            where: mask or weights, `[batch]` up to `[batch, ...]`; None weights every value by 1.

        Raises:
            TaskError: `values` is a scalar.
        """
        values = jnp.asarray(values, jnp.float32)
        if values.ndim == 0:
            raise TaskError("Mean.of needs values with a batch dimension, found a scalar. Use Mean(total, weight).")
        if where is None:
            weight = jnp.ones(values.shape, jnp.float32)
        else:
            where = jnp.asarray(where, jnp.float32)
            weight = jnp.broadcast_to(where.reshape(where.shape + (1,) * (values.ndim - where.ndim)), values.shape)
            values = jnp.where(weight != 0, values * weight, 0)
        rest = tuple(range(1, values.ndim))
        return cls(values.sum(rest), weight.sum(rest))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """The result of a Task's loss: a sum, its weight, and further metrics by name.

    The engine divides the sum of `total` over the global batch by the sum of `weight`, so the result does not depend on
    microbatches or the mesh. `total` and `weight` are `[batch]` or scalars.
    """

    total: jax.Array
    weight: jax.Array
    metrics: Mapping[str, Mean] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None, metrics: Mapping[str, Mean] | None = None) -> "Loss":
        """Returns the loss whose value is `Mean.of(values, where)`, with further metrics. Raises TaskError likewise."""
        mean = Mean.of(values, where)
        return cls(mean.total, mean.weight, dict(metrics or {}))


def reduce_mean(mean: Mean, rows: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Returns float32 `[2]`: total and weight summed over the batch, without rows of weight 0.

    Args:
        mean: entries `[batch]`, or scalars, from which no row can be left out.
        rows: float32 `[batch]`, 1 for a real row and 0 for padding; None if every row is real.
    """
    total, weight = (jnp.asarray(x, jnp.float32) for x in (mean.total, mean.weight))
    if rows is not None and by_row(mean):
        total, weight = (jnp.where(rows > 0, x * rows, 0) for x in (total, weight))
    return jnp.stack([total.sum(), weight.sum()])


def by_row(mean: Mean | Loss) -> bool:
    """Returns whether a Mean has an entry for each example, so that examples can be left out."""
    return jnp.ndim(mean.total) == 1 and jnp.ndim(mean.weight) == 1


def divide(pair: jax.Array) -> jax.Array:
    """Returns total / weight of a pair `[2]`, and 0 if the weight is 0."""
    return jnp.where(pair[1] != 0, pair[0] / jnp.where(pair[1] != 0, pair[1], 1), 0)


def check_means(means: Mapping[str, Mean], batch_size: int, where: str) -> bool:
    """Checks the metrics of a Task; returns whether every metric has one entry per row.

    Args:
        means: name -> Mean of abstract or concrete arrays.
        batch_size: rows of the batch that was passed to the Task.
        where: name of the method, for error texts.

    Raises:
        TaskError: an entry is not a Mean, or its arrays are neither `[batch]` nor scalars.
    """
    by_row = True
    for name, mean in means.items():
        if not isinstance(mean, Mean):
            raise TaskError(f"{where}: metric {name!r} is a {type(mean).__name__}. Return Mean.of(values) for it.")
        shapes = [tuple(jnp.shape(x)) for x in (mean.total, mean.weight)]
        if any(shape not in ((), (batch_size,)) for shape in shapes):
            raise TaskError(
                f"{where}: metric {name!r} has total {list(shapes[0])} and weight {list(shapes[1])} for a batch of "
                f"{batch_size}. Allowed: [{batch_size}], one entry for each example, or scalars. "
                "Mean.of(values, where) sums the other dimensions."
            )
        by_row = by_row and shapes == [(batch_size,)] * 2
    return by_row
