"""Sharpness-aware minimization (SAM) for a Task: Foret et al. 2021, arXiv:2010.01412."""

import dataclasses
from typing import Any

import jax
import optax

from engine import Mean, Task


def with_sam(task: Task, radius: float) -> Task:
    """Returns a Task whose step takes the gradient at the parameters that a step of length `radius` uphill gives.

    Args:
        task: a dataclass whose loss is one `Loss` and changes no model state.
        radius: rho of the paper.
    """
    kind: Any = type(task)

    class Sharp(kind):
        """The Task with SAM."""

        def update(self, state: Any, batch: Any, context: Any) -> tuple[Any, dict[str, Mean]]:
            def mean(params: Any) -> tuple[jax.Array, Mean]:
                loss = self.loss(state.model(params), batch, context.rng)
                total, weight = loss.total.sum(), loss.weight.sum()
                return total / weight, Mean(total, weight)

            grads, loss = jax.grad(mean, has_aux=True)(state.params)
            scale = radius / (optax.tree.norm(grads) + 1e-12)
            uphill = {path: x + scale * grads[path] for path, x in state.params.items()}
            return state.apply_gradients(jax.grad(mean, has_aux=True)(uphill)[0]), {"loss": loss}

    return Sharp(**{field.name: getattr(task, field.name) for field in dataclasses.fields(kind) if field.init})
