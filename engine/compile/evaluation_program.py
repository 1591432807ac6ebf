"""The compiled evaluation of one Task on one mesh. It needs no optimizer, no training data and no training state."""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.data.context import Context
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import batch_sharding, replicated
from engine.training.arrays import Arrays
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
        rows: rows of a training batch, for error texts; 0 if they are not known.
    """

    task: Task
    model: Model
    layout: Layout
    compute_dtype: DTypeLike
    seed: int = 0
    total_steps: int = 1
    steps_per_epoch: float = math.nan
    rows: int = 0

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
        return Weights(params, model_state, {path: params[path] for path in model.averaged} if averaged else None)

    def first_state(self, paths: Collection[str]) -> Arrays:
        """Returns the values that a new model has for this model state, on every device.

        State of another number of rows than that of the Task's model repeats its first row.
        """

        def make() -> Arrays:
            _, model_state = self.model.init(self.task, self.seed)
            shapes = {path: self.model.model_state[path].shape for path in paths}
            return {
                path: x if (x := model_state[path]).shape == shape else jnp.broadcast_to(x[:1], shape)
                for path, shape in shapes.items()
            }

        return jax.jit(with_layout(self.layout, make), out_shardings=replicated(self.mesh))()

    @contextlib.contextmanager
    def row_state_reported(self, rows: int, where: str) -> Iterator[None]:
        """Explains an error of a batch of another size than the state that the model keeps for each row."""
        try:
            yield
        except (TypeError, ValueError) as error:
            paths = self.model.state_of_rows(self.rows) if rows != self.rows else ()
            if not paths:
                raise
            state = ", ".join(f"{path} {list(self.model.model_state[path].shape)}" for path in paths)
            raise TaskError(
                f"{where}: a batch of {rows} rows does not fit the model state {state}, which has a row for each row "
                f"of a training batch ({str(error).rstrip('.')}). Use batches of {self.rows}, and a number of examples "
                "that they divide if the metrics are not one value per row."
            ) from error

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
