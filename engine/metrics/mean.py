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
from engine.metrics.values import describe_value, not_real, real_array


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
            TaskError: `values` is a scalar, or `values` or `where` is not an array of real numbers.
        """
        return cls(*sum_examples("Mean", values, where))


def sum_examples(kind: str, values: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the total and the weight of each example; `kind` is "Mean" or "Loss", for errors."""
    values = real_array(values, f"{kind}.of needs values")
    if values.ndim == 0:
        raise TaskError(
            f"{kind}.of needs at least one value for each example, [batch] or [batch, ...], found a scalar. Remove the "
            f"mean or the sum over the batch, or use {kind}(total, weight)."
        )
    if where is None:
        weight = jnp.ones(values.shape, jnp.float32)
    else:
        where = real_array(where, f"{kind}.of needs weights")
        weight = jnp.broadcast_to(where.reshape(where.shape + (1,) * (values.ndim - where.ndim)), values.shape)
        values = jnp.where(weight != 0, values * weight, 0)
    rest = tuple(range(1, values.ndim))
    return values.sum(rest), weight.sum(rest)


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


def by_row(mean: Mean) -> bool:
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
        TaskError: the metrics are no dict, a name is no text, an entry is not a Mean, or its arrays are neither
            `[batch]` nor scalars, or not real.
    """
    by_row = True
    if not isinstance(means, Mapping):
        raise TaskError(f"{where} returned {describe_value(means)}. Return a dict of metrics, name -> Mean.of(values).")
    for name, mean in means.items():
        if not isinstance(name, str) or not name:
            raise TaskError(f"{where}: metric {name!r} is not a name. Use text.")
        if not isinstance(mean, Mean):
            raise TaskError(f"{where}: metric {name!r} is {describe_value(mean)}. Return Mean.of(values) for it.")
        if problem := not_real(mean.total) or not_real(mean.weight):
            raise TaskError(f"{where}: metric {name!r} holds {problem}, allowed are real numbers.")
        shapes = [tuple(jnp.shape(x)) for x in (mean.total, mean.weight)]
        if any(shape not in ((), (batch_size,)) for shape in shapes):
            raise TaskError(
                f"{where}: metric {name!r} has total {list(shapes[0])} and weight {list(shapes[1])} for a batch of "
                f"{batch_size}. Allowed: [{batch_size}], one entry for each example, or scalars. "
                "Mean.of(values, where) sums the other dimensions."
            )
        by_row = by_row and shapes == [(batch_size,)] * 2
    return by_row
