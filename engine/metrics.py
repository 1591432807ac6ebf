"""Metrics as (sum, weight): merged over microbatches, devices, hosts and batches without loss, divided once.

A total is the sum of a quantity; a weight is the number of its terms, as a float. Both have one entry for each example,
`[batch]`, so that padded rows can be left out. Scalars that are summed already are accepted too: an evaluation then
gives its last batch its own size instead of padding it.
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
    """A mean that is not divided yet: `total` and `weight`, each `[batch]` or a scalar."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None) -> "Mean":
        """The mean of `values` `[batch, ...]`, over the entries where `where` `[batch]` up to `[batch, ...]` is not 0.

        `where` may hold weights other than 0 and 1. Values at weight 0 may be NaN: they are not read.
        """
        values = jnp.asarray(values, jnp.float32)
        if values.ndim == 0:
            raise TaskError("Mean.of takes values with a batch dimension, found a scalar. Use Mean(total, weight).")
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
    """What a Task's loss returns: a sum, its weight, and further metrics by name.

    The engine divides the sum over the whole global batch by the weight over the whole global batch, so microbatches
    and meshes change nothing. `total` and `weight` are `[batch]` or scalars.
    """

    total: jax.Array
    weight: jax.Array
    metrics: Mapping[str, Mean] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None, metrics: Mapping[str, Mean] | None = None) -> "Loss":
        """The mean of `values` `[batch, ...]` where `where` is not 0, as `Mean.of`, with `metrics` beside it."""
        mean = Mean.of(values, where)
        return cls(mean.total, mean.weight, dict(metrics or {}))


def reduce_mean(mean: Mean, rows: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Returns `[2]` float32: total and weight summed over the batch, rows of weight 0 left out.

    Args:
        mean: with entries `[batch]`, or scalars, from which no row can be left out.
        rows: `[batch]` float32, 1 for a real row and 0 for padding; None when every row is real.
    """
    total, weight = (jnp.asarray(x, jnp.float32) for x in (mean.total, mean.weight))
    if rows is not None and by_row(mean):
        total, weight = (jnp.where(rows > 0, x * rows, 0) for x in (total, weight))
    return jnp.stack([total.sum(), weight.sum()])


def by_row(mean: Mean | Loss) -> bool:
    """Whether a Mean has an entry for each example, so that single ones can be left out."""
    return jnp.ndim(mean.total) == 1 and jnp.ndim(mean.weight) == 1


def divide(pair: jax.Array) -> jax.Array:
    """Returns total / weight of a `[2]` pair, and 0 where the weight is 0."""
    return jnp.where(pair[1] != 0, pair[0] / jnp.where(pair[1] != 0, pair[1], 1), 0)


def check_means(means: Mapping[str, Mean], batch_size: int, where: str) -> bool:
    """Checks the abstract result of a Task; returns whether every metric tells its rows apart.

    Args:
        means: name -> Mean of abstract or concrete arrays.
        batch_size: rows of the batch that was given to the Task.
        where: the method, for the error.

    Raises:
        TaskError: an entry that is no Mean, or neither `[batch]` nor a scalar.
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
