"""The compiled evaluation of one Task on one mesh. It needs no optimizer, no training data and no training state."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from engine.base.types import PyTree
from engine.data.context import Context
from engine.parallel.layout import Layout
from engine.parallel.mesh import batch_sharding, replicated
from engine.training.model import Model
from engine.training.state import Weights, param_shardings
from engine.training.task import Task

EVALUATION = 0x6576616C  # folded into the seed, so that evaluations draw other numbers than the first steps


@dataclasses.dataclass(frozen=True)
class EvaluationProgram:
    """A Task and its model on the mesh of a layout.

    Attributes:
        task: the Task.
        model: the model of the Task, described under `layout`.
        layout: a layout with a mesh.
        compute_dtype: precision of the forward pass.
        seed: seed of the random keys of the context.
        total_steps: steps of the run, for the context.
        steps_per_epoch: likewise; NaN if it is not known, since an evaluation needs no training data.
    """

    task: Task
    model: Model
    layout: Layout
    compute_dtype: DTypeLike
    seed: int = 0
    total_steps: int = 1
    steps_per_epoch: float = math.nan

    @property
    def mesh(self) -> Mesh:
        """The mesh of the layout."""
        assert self.layout.mesh is not None
        return self.layout.mesh

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of the rows of a batch."""
        return batch_sharding(self.mesh)

    def abstract_weights(self, averaged: bool) -> Weights:
        """Returns the weights as jax.ShapeDtypeStruct with shardings.

        Args:
            averaged: whether the trained parameters have averages.

        Raises:
            ShardingError: a parameter does not fit the rules or the mesh.
        """
        model, whole = self.model, replicated(self.mesh)
        shardings = param_shardings(model, self.mesh, self.layout.rules)
        params: PyTree = {path: _abstract(x, shardings[path]) for path, x in model.params.items()}
        model_state: PyTree = {path: _abstract(x, whole) for path, x in model.model_state.items()}
        return Weights(params, model_state, {path: params[path] for path in model.trained} if averaged else None)

    def point(self, step: int, first: int) -> np.ndarray:
        """Returns the last argument of an evaluation step, of which the context is made.

        Args:
            step: step of the weights.
            first: position of the first example of the batch in the order of the evaluation.
        """
        return np.array([self.seed, step, first], np.uint32)

    def context(self, point: jax.Array, weight: jax.Array | np.ndarray) -> Context:
        """Returns the context of a batch with the weight of each row `[rows]`.

        Its keys depend on the seed and the position of each example.
        """
        (seed, step, first), rows = point, len(weight)
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows, dtype=jnp.uint32))
        epoch = step / jnp.float32(self.steps_per_epoch)
        return Context(step.astype(jnp.int32), epoch, self.total_steps, keys, jnp.asarray(weight) > 0)


def _abstract(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
