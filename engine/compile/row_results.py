"""What the methods of a Task return for a batch, as arrays by row and as sums, so that rows can be compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from engine.base.types import PyTree
from engine.data.context import Context, call
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric, array_fields
from engine.training.objective import losses_for_evaluation, means_of, without_refused_loss
from engine.training.task import Task, encode


@dataclass(frozen=True)
class Found:
    """Results of a method on a batch."""

    rows: Mapping[str, jax.Array]
    """Name -> array `[rows, ...]`."""
    sums: Mapping[str, jax.Array]
    """Name -> `[2]`, a total and its weight, of results that are already summed over the rows."""


jax.tree_util.register_dataclass(Found)


def losses(task: Task, module: nnx.Module, examples: PyTree, context: Context) -> Found:
    """Returns the losses and the metrics of `Task.loss`."""
    result = call(task.loss, module, examples, context.rng, context=context)
    return _of_metrics(means_of(result), len(context.rng))


def encodings(task: Task, module: nnx.Module, examples: PyTree, context: Context) -> Found:
    """Returns the result of `Task.encode`."""
    return _of_arrays(encode(task, module, examples, context.rng, context))


def evaluated(task: Task, module: nnx.Module, examples: PyTree, context: Context) -> Found:
    """Returns the metrics of `Task.evaluate`."""
    metrics = call(task.evaluate, module, examples, context=context)
    return _of_metrics(without_refused_loss(metrics), len(context.rng))


def evaluated_losses(task: Task, module: nnx.Module, examples: PyTree, context: Context) -> Found:
    """Returns the losses that an evaluation adds to the metrics of `Task.evaluate`."""
    result = call(task.loss, module, examples, None, context=context)
    return _of_metrics(losses_for_evaluation(result), len(context.rng))


def predicted(task: Task, module: nnx.Module, examples: PyTree, context: Context) -> Found:
    """Returns the result of `Task.predict`."""
    return _of_arrays(task.predict(module, examples))


def _of_arrays(tree: PyTree) -> Found:
    found = jax.tree.leaves_with_path(tree)
    return Found({jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}, {})


def _of_metrics(metrics: Mapping[str, Metric], rows: int) -> Found:
    """Returns the arrays of the metrics of a batch of so many rows; to be traced."""
    arrays: dict[str, jax.Array] = {}
    sums: dict[str, jax.Array] = {}
    for name, metric in metrics.items():
        fields = {field: jnp.asarray(getattr(metric, field)) for field, _ in array_fields(metric)}
        scalars = {field: x for field, x in fields.items() if x.ndim == 0}
        if scalars and isinstance(metric, Mean):
            sums[name] = jnp.stack([jnp.sum(metric.total), jnp.sum(metric.weight)]).astype(jnp.float32)
            continue
        arrays |= {f"{name}.{field}": x for field, x in fields.items() if x.ndim}
        pairs = {field: jnp.stack([x.astype(jnp.float32), jnp.float32(rows)]) for field, x in scalars.items()}
        sums |= {f"{name}.{field}": pair for field, pair in pairs.items()}
    return Found(arrays, sums)
