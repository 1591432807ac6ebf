"""The compiled predictions of one Task on one mesh."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError, did_you_mean
from engine.base.types import PyTree
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.evaluation_step import EvaluationStep
from engine.data.batch import Batch, abstract_batch
from engine.metrics.values import describe_value
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
from engine.training.arrays import Arrays, cast
from engine.training.model import with_whole_kernels
from engine.training.state import Weights
from engine.training.task import author_errors_reported

type PredictionStep = EvaluationStep[tuple[jax.Array, dict[str, jax.Array], Arrays]]
type Shapes = dict[str, tuple[int, ...]]
"""Name of a prediction -> its shape without the batch."""

BATCH = "batch/"  # before the paths of entries of the batch
SINGLE = "prediction"  # name of the predictions of a Task that returns one array


def prediction_step(
    program: EvaluationProgram,
    example: PyTree,
    batch_size: int,
    fields: Sequence[str] = (),
    where: str = "the batch size of predictions",
) -> tuple[PredictionStep, Shapes]:
    """Returns the step and the shapes of the predictions.

    It is `(params, model state, batch) -> (weight [batch], predictions, model state)`, of which the last has the arrays
    that belong to rows and that the predictions have changed.

    Every device, and so every process, holds the whole result. Names are the paths in the pytree that the Task returns.
    The step also takes batches of smaller lengths than the example.

    Args:
        program: program with the Task.
        example: spec of an example.
        batch_size: rows per batch.
        fields: entries of the batch that become results too, named "batch/" and their path.

    Raises:
        TaskError: `Task.predict` is missing or does not return arrays `[batch, ...]`, or an entry does not exist.
    """
    task = program.task

    def step(params: Arrays, model_state: Arrays, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array], Arrays]:
        values = with_whole_kernels(program.model, cast(params, program.compute_dtype))
        module = program.model.module(values, model_state, None)
        module.eval()
        with (
            author_errors_reported(task, "predict", batch.examples),
            program.row_state_reported(batch_size, where),
        ):
            found = task.predict(module, cast(batch.examples, program.compute_dtype, task.full_precision))
        after, paths = program.model.state_of(module), program.model.state_of_rows(len(batch.weight))
        state = {p: after[p].astype(model_state[p].dtype) for p in paths if after.get(p) is not model_state[p]}
        named = _by_name(found, batch_size, f"{type(task).__name__}.predict")
        return jnp.asarray(batch.weight), named | _chosen(batch.examples, fields), state

    weights = program.abstract_weights(averaged=False)
    batch = abstract_batch(example, batch_size, program.batch_sharding)
    _, abstract, state = jax.eval_shape(with_layout(program.layout, step), weights.params, weights.model_state, batch)
    shapes = {name: abstract[name].shape[1:] for name in sorted(abstract)}
    jitted = jax.jit(with_layout(program.layout, step), out_shardings=replicated(program.mesh))

    def lower(weights: Weights, batch: Batch) -> jax.stages.Lowered:
        return jitted.lower(weights.params, weights.model_state, batch)

    return EvaluationStep(jitted, lower, program.mesh, state), shapes


def _chosen(batch: PyTree, fields: Sequence[str]) -> dict[str, jax.Array]:
    """Returns path -> array of the entries of a batch that are or lie below one of the fields. Raises TaskError."""
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(batch)}
    found = {}
    for field in fields:
        below = {path: x for path, x in arrays.items() if f"{path}/".startswith(f"{field}/")}
        if not below:
            raise TaskError(
                f"fields: the examples have no numbers named {field!r}.{did_you_mean(field, arrays)} Allowed: "
                f"{', '.join(arrays)}."
            )
        found |= {f"{BATCH}{path}": _as_stored(x) for path, x in below.items()}
    return found


def _as_stored(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x


def _by_name(found: PyTree, batch_size: int, where: str) -> dict[str, jax.Array]:
    """Returns path -> array; 16-bit floats become float32, which every file format holds. Raises TaskError."""
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(found):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or SINGLE
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if dtype is None or shape is None or shape[:1] != (batch_size,):
            raise TaskError(
                f"{where}: {name} is {describe_value(leaf)}, allowed are arrays with one row for each of the "
                f"{batch_size} examples of the batch."
            )
        arrays[name] = _as_stored(leaf)
    if not arrays:
        raise TaskError(f"{where} returned {describe_value(found)}. Return arrays [batch, ...], usually in a dict.")
    return arrays
