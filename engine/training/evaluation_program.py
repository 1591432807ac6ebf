"""The compiled evaluation of one Task on one mesh. It needs no optimizer, no training data and no training state."""

import dataclasses
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from engine.data.batch import Batch, abstract_batch
from engine.metrics.metric import Metric
from engine.metrics.state import MetricStates, check_metrics
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import batch_sharding, replicated
from engine.training.model import Arrays, Model
from engine.training.state import Weights, param_shardings
from engine.training.step import EvaluationStep, evaluate, make_evaluation_step
from engine.training.task import Task, missing_key_reported
from engine.types import PyTree


@dataclasses.dataclass(frozen=True)
class EvaluationProgram:
    """A Task and its model on the mesh of a layout.

    Attributes:
        task: the Task.
        model: the model of the Task, described under `layout`.
        layout: a layout with a mesh.
        compute_dtype: precision of the forward pass.
    """

    task: Task
    model: Model
    layout: Layout
    compute_dtype: DTypeLike

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

    def evaluation(self, example: PyTree, batch_size: int) -> tuple[EvaluationStep, MetricStates, bool]:
        """Returns the jitted evaluation step, its metrics, and whether all metrics have one entry per row.

        Raises:
            TaskError: the Task's `evaluate` does not return valid metrics.
        """
        weights = self.abstract_weights(averaged=False)
        batch = abstract_batch(example, batch_size, self.batch_sharding)
        checked: list[bool] = []

        def check(params: Arrays, model_state: Arrays, batch: Batch) -> Mapping[str, Metric]:
            with missing_key_reported(self.task, "evaluate", batch.examples):
                metrics = evaluate(self.task, self.model, self.compute_dtype, params, model_state, batch)
            checked.append(check_metrics(metrics, batch_size, f"{type(self.task).__name__}.evaluate"))
            return dict(metrics)

        metrics = jax.eval_shape(with_layout(self.layout, check), weights.params, weights.model_state, batch)
        [by_row] = checked
        states = MetricStates(metrics)
        step = make_evaluation_step(self.task, self.model, self.compute_dtype, states)
        return jax.jit(with_layout(self.layout, step), out_shardings=replicated(self.mesh)), states, by_row


def _abstract(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
