"""SAM: sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412), for the `update` of a Task."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.data.context import Context, call
from engine.metrics.mean import Mean, divide
from engine.metrics.metric import Metric
from engine.training.arrays import Arrays
from engine.training.objective import LOSS, means_of, objective_of
from engine.training.task import Task
from engine.training.update_state import UpdateState

SMALLEST_NORM = 1e-12


def sam_update(
    task: Task, state: UpdateState, batch: PyTree, context: Context, *, rho: float = 0.05
) -> tuple[UpdateState, Mapping[str, Metric]]:
    """Returns the state after a step of sharpness-aware minimisation, and the metrics of `Task.loss`.

    SAM (Foret et al. 2021, arXiv:2010.01412, Algorithm 1) updates with the gradient at w + rho g / |g|, where g is the
    gradient at w. A step costs two gradients. The optimizer of the config makes the update. It is a function for
    `Task.update`, since an optimizer has only one gradient:

        def update(self, state, batch, context):
            return engine.optimizers.sam_update(self, state, batch, context, rho=0.05)

    Metrics and the model state, such as batch statistics, are those of the pass at w.

    Args:
        task: the Task, whose `loss` returns a Loss or a `Loss.sum`.
        state: the state before the step.
        batch: the global batch.
        context: the step.
        rho: distance to the point of the gradient; 0.05 in the paper.

    Raises:
        TaskError: the loss has an entry for each optimizer group.
    """

    def objective(params: Arrays) -> tuple[jax.Array, Any]:
        model = state.model(params)
        result = call(task.loss, model, batch, context.rng, context=context)
        means: dict[str, Any] = means_of(result)
        terms = objective_of(result).terms
        if len(terms) != 1:
            name = type(task).__name__
            raise TaskError(
                f"sam_update: {name}.loss returns a loss for each of {', '.join(terms)}, but SAM has one gradient. "
                "Return one Loss, or Loss.sum."
            )
        [names] = terms.values()
        value = sum((divide(jnp.stack([means[x].total.sum(), means[x].weight.sum()])) for x in names), jnp.float32(0))
        return value, (value, means, state.store(model))

    grads, (value, metrics, new) = jax.grad(objective, has_aux=True)(state.params)
    scale = rho / (optax.tree.norm(grads) + SMALLEST_NORM)
    nearby = {path: x + (scale * grads[path]).astype(x.dtype) for path, x in state.params.items()}
    grads, _ = jax.grad(objective, has_aux=True)(nearby)
    return new.apply_gradients(grads), {LOSS: Mean(value, jnp.float32(1)), **metrics}
