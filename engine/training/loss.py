"""`Loss`, the result of a Task's loss."""

import dataclasses
from collections.abc import Mapping

import jax

from engine.metrics.mean import Mean, sum_examples


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
        return cls(*sum_examples("Loss", values, where), dict(metrics or {}))
