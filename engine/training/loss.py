"""`Loss`, the result of a Task's loss, and `LossSum`, a sum of losses of which each has its own denominator."""

import dataclasses
from collections.abc import Mapping

import jax

from engine.base.errors import TaskError
from engine.metrics.mean import sum_examples
from engine.metrics.metric import Metric
from engine.metrics.values import describe_value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """The result of a Task's loss: a sum, its weight, and further metrics by name.

    The engine divides the sum of `total` over the global batch by the sum of `weight`, so the result does not depend on
    microbatches or the mesh. `total` and `weight` are `[batch]` or scalars. `0.5 * loss` scales the total.
    """

    __array_ufunc__ = None  # numpy scalars leave `scalar * loss` to `__rmul__`

    total: jax.Array
    weight: jax.Array
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, values: jax.Array, where: jax.Array | None = None, metrics: Mapping[str, Metric] | None = None
    ) -> "Loss":
        """Returns the loss whose value is `Mean.of(values, where)`, with further metrics. Raises TaskError likewise."""
        return cls(*sum_examples("Loss", values, where), dict(metrics or {}))

    @staticmethod
    def sum(**terms: "Loss | LossSum") -> "LossSum":
        """Returns the sum of losses, of which each is divided by its own weight and logged by its name.

        `Loss.sum(heat=Loss.of(heat), box=0.5 * Loss.of(box, where))` is the mean of `heat` plus half the mean of `box`.
        Both means are taken over the whole global batch. The logged values include the factors.

        Raises:
            TaskError: there is no term, a term is not a Loss, or two terms have the same name.
        """
        if not terms:
            raise TaskError("Loss.sum needs at least one term: Loss.sum(heat=Loss.of(values)).")
        flat: dict[str, Loss] = {}
        for name, term in terms.items():
            if isinstance(term, LossSum):
                found = {f"{name}/{inner}": loss for inner, loss in term.terms.items()}
            elif isinstance(term, Loss):
                found = {name: term}
            else:
                raise TaskError(f"Loss.sum: {name} is {describe_value(term)}. Use Loss.of(values, where=...).")
            if twice := found.keys() & flat.keys():
                raise TaskError(f"Loss.sum: two terms have the name {min(twice)!r}. Rename one of them.")
            flat |= found
        return LossSum(flat)

    def __mul__(self, factor: float | jax.Array) -> "Loss":
        return dataclasses.replace(self, total=self.total * factor)

    __rmul__ = __mul__


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """A sum of losses, the result of `Loss.sum`: name -> loss, each with its own denominator."""

    __array_ufunc__ = None

    terms: Mapping[str, Loss]

    def __mul__(self, factor: float | jax.Array) -> "LossSum":
        return LossSum({name: factor * loss for name, loss in self.terms.items()})

    __rmul__ = __mul__


type TaskLoss = Loss | LossSum | Mapping[str, Loss | LossSum]
"""What a Task's `loss` may return; the keys of a mapping are names of optimizer groups."""
