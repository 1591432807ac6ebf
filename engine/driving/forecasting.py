"""Errors of forecasts with several modes: minADE, minFDE, miss rate and brier scores."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric, added
from engine.metrics.resampling import Resampler, Sums
from engine.metrics.values import real_array


class BestOfModes(Metric):
    """Displacement errors of the best of several forecast trajectories, averaged over agents.

    - min_ade: the smallest mean displacement over the valid steps (Ettinger et al. 2021, arXiv:2104.10133, section
      4.3). With `best="endpoint"`, that of the mode with the smallest error at the last step (Wilson et al. 2021,
      Argoverse 2, arXiv:2301.00493, section 4.1).
    - min_fde: the smallest displacement at the last valid step.
    - miss_rate: the share of agents whose min_fde is above `miss`, 2 m in both benchmarks' simplest form.
    - brier_min_ade, brier_min_fde, with probabilities: the errors plus `(1 - p)**2`, where p is the probability of the
      mode with the smallest error at the last step, the first of several.

    With `best="endpoint"`, these are the metrics of the single-agent challenge of Argoverse 2, as the package av2
    computes them: `python -m benchmarks.references --only=forecast_metrics` compares the two. Errors are float32: modes
    whose errors differ by less than its rounding have the same error here.
    """

    higher_is_better = False

    ade: jax.Array
    fde: jax.Array
    missed: jax.Array
    agents: jax.Array
    brier: jax.Array = added()
    scored: bool = False

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        future: ArrayLike,
        where: ArrayLike | None = None,
        *,
        miss: float = 2.0,
        best: str = "each",
        probabilities: ArrayLike | None = None,
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
            probabilities: of the modes, `[batch, modes]` or `[batch, agents, modes]`, 0 to 1, used as they are; None
                for no brier scores.

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
        scored = probabilities is not None
        probabilities = real_array(1 if probabilities is None else probabilities, "BestOfModes.of needs probabilities")
        if scored and probabilities.shape != predicted.shape[:-2]:
            raise TaskError(
                f"BestOfModes.of: probabilities has shape {list(probabilities.shape)}. Allowed is that of the modes, "
                f"{list(predicted.shape[:-2])}."
            )
        valid = real_array(1 if where is None else where, "BestOfModes.of needs a mask") > 0
        if valid.ndim < future.ndim - 1:
            valid = valid.reshape(valid.shape + (1,) * (future.ndim - 1 - valid.ndim))
        valid = jnp.broadcast_to(valid, future.shape[:-1])[..., None, :]  # [..., 1, steps]
        distance = jnp.where(valid, jnp.linalg.norm(predicted - future[..., None, :, :], axis=-1), 0)
        steps = valid.sum(-1)  # [..., 1]
        ades = distance.sum(-1) / jnp.maximum(steps, 1)  # [..., modes]
        last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[-1]), 0), axis=-1, keepdims=True)  # [..., 1, 1]
        fdes = jnp.take_along_axis(distance, last, axis=-1)[..., 0]  # [..., modes]
        first = fdes.argmin(-1)[..., None]  # the first of several with equal errors, as in av2
        fde = fdes.min(-1)
        ade = ades.min(-1) if best == "each" else jnp.take_along_axis(ades, first, axis=-1)[..., 0]
        chosen = jnp.take_along_axis(jnp.broadcast_to(probabilities, fdes.shape), first, axis=-1)[..., 0]
        there, missed = steps[..., 0] > 0, ~(fde <= miss)  # NaN is a miss
        values = (ade, fde, missed, there, (1 - chosen) ** 2)
        sums = [jnp.where(there, x, 0).reshape(len(there), -1).sum(1) for x in values]
        return cls(*sums, scored=scored)

    def compute(self) -> dict[str, Any]:
        """Returns min_ade, min_fde and miss_rate, and with probabilities brier_min_ade and brier_min_fde."""
        return self._means(vars(self))

    def resampler(self) -> Resampler:
        return Sums({name: x for name, x in vars(self).items() if name != "scored"}, self._means)

    def _means(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        found = {"min_ade": sums["ade"], "min_fde": sums["fde"], "miss_rate": sums["missed"]}
        if self.scored:
            found |= {f"brier_{name}": found[name] + sums["brier"] for name in ("min_ade", "min_fde")}
        return {name: np.divide(total, sums["agents"]) for name, total in found.items()}
