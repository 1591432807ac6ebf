"""Metrics that are quotients or functions of sums: mean, sum, ratio and root mean square.

`Mean` is also the form of a loss. Its entries may be scalars that are already summed; an evaluation then runs its last
batch at its real size instead of padding it.
"""

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric
from engine.metrics.values import real_array, spread

if TYPE_CHECKING:
    from engine.metrics.resampling import Resampler


class Mean(Metric):
    """A mean before its division: the sum `total` and its `weight`, each `[batch]` or a scalar."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the weighted mean of values, summed over each example.

        Args:
            values: `[batch, ...]`; values of weight 0 are ignored and may be NaN.
            where: mask or weights, `[batch]` up to `[batch, ...]`; None weights every value by 1.

        Raises:
            TaskError: `values` is a scalar, `values` or `where` is not an array of real numbers, or their shapes do not
                fit together.
        """
        return cls(*sum_examples(cls.__name__, values, where))

    def compute(self) -> Any:
        """Returns total / weight; NaN if the weight is 0."""
        return self.total / self.weight if self.weight else np.nan

    def resampler(self) -> "Resampler":
        from engine.metrics.resampling import Sums

        return Sums(vars(self), lambda sums: {"": np.where(sums["weight"], sums["total"] / sums["weight"], np.nan)})


class RootMeanSquare(Mean):
    """The square root of the weighted mean of squares, such as the RMSE of errors."""

    @classmethod
    def of(cls, values: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the root mean square of values. Arguments and errors are those of `Mean.of`."""
        return super().of(jnp.square(real_array(values, "RootMeanSquare.of needs values")), where)

    def compute(self) -> Any:
        """Returns sqrt(total / weight)."""
        return np.sqrt(super().compute())

    def resampler(self) -> "Resampler":
        from engine.metrics.resampling import Sums

        return Sums(
            vars(self), lambda sums: {"": np.sqrt(np.where(sums["weight"], sums["total"] / sums["weight"], np.nan))}
        )


class Sum(Metric):
    """The sum of values over all examples, such as a count."""

    total: jax.Array

    @classmethod
    def of(cls, values: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the weighted sum of values. Arguments and errors are those of `Mean.of`."""
        return cls(sum_examples(cls.__name__, values, where)[0])

    def compute(self) -> Any:
        """Returns the total."""
        return self.total

    def resampler(self) -> "Resampler":
        from engine.metrics.resampling import Sums

        return Sums(vars(self), lambda sums: {"": sums["total"]})


class Ratio(Metric):
    """The sum of one quantity over the sum of another, such as collisions per kilometre."""

    numerator: jax.Array
    denominator: jax.Array

    @classmethod
    def of(cls, numerator: ArrayLike, denominator: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the ratio of two sums over `[batch, ...]`; `where` masks or weights both, as in `Mean.of`."""
        return cls(*(sum_examples(cls.__name__, x, where)[0] for x in (numerator, denominator)))

    def compute(self) -> Any:
        """Returns numerator / denominator."""
        return np.divide(self.numerator, self.denominator)

    def resampler(self) -> "Resampler":
        from engine.metrics.resampling import Sums

        return Sums(vars(self), lambda sums: {"": sums["numerator"] / sums["denominator"]})


def sum_examples(kind: str, values: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Returns the total and the weight of each example; `kind` is the class, such as "Mean", for errors."""
    values = real_array(values, f"{kind}.of needs values")
    if values.ndim == 0:
        raise TaskError(
            f"{kind}.of needs at least one value for each example, [batch] or [batch, ...], found a scalar. Remove the "
            f"mean or the sum over the batch, or use {kind}(total, weight)."
        )
    if where is None:
        weight = jnp.ones(values.shape, jnp.float32)
    else:
        weight = spread(kind, real_array(where, f"{kind}.of needs weights"), values.shape)
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
