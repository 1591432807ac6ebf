"""Errors of forecasts with several modes: minADE, minFDE and miss rate."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric
from engine.metrics.resampling import Resampler, Sums
from engine.metrics.values import real_array


class BestOfModes(Metric):
    """Displacement errors of the best of several forecast trajectories, averaged over agents.

    - min_ade: the smallest mean displacement over the valid steps (Ettinger et al. 2021, arXiv:2104.10133, section
      4.3). With `best="endpoint"`, that of the mode with the smallest error at the last step (Wilson et al. 2021,
      Argoverse 2, arXiv:2301.00493, section 4.1).
    - min_fde: the smallest displacement at the last valid step.
    - miss_rate: the share of agents whose min_fde is above `miss`, 2 m in both benchmarks' simplest form.
    """

    higher_is_better = False

    ade: jax.Array
    fde: jax.Array
    missed: jax.Array
    agents: jax.Array

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        future: ArrayLike,
        where: ArrayLike | None = None,
        *,
        miss: float = 2.0,
        best: str = "each",
    ) -> Self:
        """Returns the errors of each example.

        Args:
            predicted: predicted positions, `[batch, modes, steps, dim]` or `[batch, agents, modes, steps, dim]`, in
                metres.
            future: true positions, `[batch, steps, dim]` or `[batch, agents, steps, dim]`.
            where: valid steps, `[batch, steps]` or `[batch, agents, steps]`, or valid agents, without the last
                dimension. An agent without a valid step is left out.
            miss: distance above which a forecast is missed.
            best: "each" takes the smallest of each error; "endpoint" the mode with the best endpoint.

        Raises:
            TaskError: the shapes do not fit together, or `best` is unknown.
        """
        predicted = real_array(predicted, "BestOfModes.of needs forecasts")
        future = real_array(future, "BestOfModes.of needs a future")
        shape = (*predicted.shape[:-3], *predicted.shape[-2:])
        if predicted.ndim not in (4, 5) or future.shape != shape:
            raise TaskError(
                f"BestOfModes.of: predicted has shape {list(predicted.shape)} and future {list(future.shape)}. "
                "Allowed: [batch, agents, modes, steps, dim] and [batch, agents, steps, dim], with or without agents."
            )
        if best not in ("each", "endpoint"):
            raise TaskError(f"BestOfModes.of: best = {best!r} is unknown. Allowed: each, endpoint.")
        valid = real_array(1 if where is None else where, "BestOfModes.of needs a mask") > 0
        if valid.ndim < future.ndim - 1:
            valid = valid.reshape(valid.shape + (1,) * (future.ndim - 1 - valid.ndim))
        valid = jnp.broadcast_to(valid, future.shape[:-1])[..., None, :]  # [..., 1, steps]
        distance = jnp.where(valid, jnp.linalg.norm(predicted - future[..., None, :, :], axis=-1), 0)
        steps = valid.sum(-1)  # [..., 1]
        ades = distance.sum(-1) / jnp.maximum(steps, 1)  # [..., modes]
        last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[-1]), 0), axis=-1, keepdims=True)  # [..., 1, 1]
        fdes = jnp.take_along_axis(distance, last, axis=-1)[..., 0]  # [..., modes]
        fde = fdes.min(-1)
        ade = ades.min(-1)
        if best == "endpoint":
            ade = jnp.take_along_axis(ades, fdes.argmin(-1)[..., None], axis=-1)[..., 0]
        there, missed = steps[..., 0] > 0, ~(fde <= miss)  # NaN is a miss
        sums = [jnp.where(there, x, 0).reshape(len(there), -1).sum(1) for x in (ade, fde, missed, there)]
        return cls(*sums)

    def compute(self) -> dict[str, Any]:
        """Returns min_ade, min_fde and miss_rate."""
        sums = {"min_ade": self.ade, "min_fde": self.fde, "miss_rate": self.missed}
        return {name: np.divide(total, self.agents) for name, total in sums.items()}

    def resampler(self) -> Resampler:
        names = {"min_ade": "ade", "min_fde": "fde", "miss_rate": "missed"}
        return Sums(vars(self), lambda sums: {name: sums[x] / sums["agents"] for name, x in names.items()})
