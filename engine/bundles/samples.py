"""Samples of a bundle: rows of real data, and what the engine computes from them."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from engine.api.saved_run import LoadedRun
from engine.base.errors import ConfigError, TaskError, did_you_mean
from engine.base.types import PyTree
from engine.bundles.bundle import array_text
from engine.bundles.exported import Entry
from engine.bundles.forward import STATE, key, outputs_of, values_of
from engine.compile.build import build_evaluation_program
from engine.compile.evaluation_program import EvaluationProgram
from engine.config.schema import Data, MeshSpec
from engine.data.adapt import build_source
from engine.data.feed import EvaluationFeed
from engine.data.source import BaseSource, example_spec, limited
from engine.metrics.values import pad_rows
from engine.parallel.layout import with_layout
from engine.parallel.mesh import make_mesh
from engine.training.arrays import cast
from engine.training.task import Task, for_sources

ROWS = 4
"""Rows of the samples."""
FRAMES = 6
"""Calls of the samples of a model with memory, each of one row."""

type Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class SampleData:
    """The dataset of the samples.

    Attributes:
        task: the Task for this dataset.
        program: the Task and its model on one device.
        source: the examples.
        settings: how they are read.
        where: config section.
        example: one example, a pytree of jax.ShapeDtypeStruct.
    """

    task: Task
    program: EvaluationProgram
    source: BaseSource
    settings: Data
    where: str
    example: PyTree

    def batches(self, rows: int, count: int) -> list[dict[str, np.ndarray]]:
        """Returns the first batches by name `[rows, ...]`, padded to the shapes of `example`."""
        feed = EvaluationFeed(
            self.source, self.settings, batch_size=rows, sharding=self.program.batch_sharding, in_order=True
        )
        shapes, found = {key(path): x.shape for path, x in jax.tree.leaves_with_path(self.example)}, []
        with contextlib.closing(iter(feed)) as batches:
            for _, batch in zip(range(count), batches, strict=False):
                arrays = jax.device_get({key(path): x for path, x in jax.tree.leaves_with_path(batch.examples)})
                found.append({name: pad_rows(x, shapes[name]) for name, x in arrays.items()})
        return found


def sample_data(found: LoadedRun, evaluation: str | None) -> SampleData:
    """Returns the dataset of an evaluation: of that name, or else of the first one; without any, the training data.

    Args:
        found: the trained model; its config may have other data of the evaluations than the run.
        evaluation: name of the evaluation.

    Raises:
        ConfigError: there is no such evaluation.
        DataError: the data cannot be read.
    """
    config = found.config
    names = list(config.evaluations)
    if evaluation is not None and evaluation not in names:
        raise ConfigError(
            f"--evaluation={evaluation}: no such evaluation.{did_you_mean(evaluation, names)} The run has "
            f"{', '.join(names) or 'none'}."
        )
    name = evaluation or (names[0] if names else None)
    where = "data" if name is None else f"evaluations.{name}.data"
    settings = config.data if name is None else config.evaluations[name].data
    source = limited(build_source(settings, where, finite=True), settings.limit)
    task = for_sources(found.task, {where: source})
    mesh = make_mesh(MeshSpec(), jax.local_devices()[:1])
    program = build_evaluation_program(task, mesh, config.train, config.sharding, config.optimizer.trainable)
    return SampleData(task, program, source, settings, where, example_spec(source))


def example_inputs(entry: Entry, task: Task) -> dict[str, np.ndarray]:
    """Returns the example inputs of an entry point by name, in the dtypes of JAX; {} if they come from a dataset.

    Raises:
        TaskError: they are not arrays by name with the same number of rows.
    """
    if entry.inputs is None:
        return {}
    where = f"{type(task).__name__}.{entry.name}: inputs="
    given = entry.inputs(task)
    if not isinstance(given, Mapping) or not given:
        raise TaskError(f"{where}: returns {type(given).__name__}. Return a dict of at least one array [rows, ...].")
    arrays = {str(name): np.asarray(x) for name, x in given.items()}
    for name, x in arrays.items():
        if x.dtype.kind not in "biufV" or not x.shape or x.shape[0] != len(next(iter(arrays.values()))) or not len(x):
            shapes = ", ".join(f"{key} {array_text(x)}" for key, x in arrays.items())
            raise TaskError(f"{where}: {name} is not an array of numbers with as many rows as the others: {shapes}.")
    return {name: x.astype(jax.dtypes.canonicalize_dtype(x.dtype)) for name, x in arrays.items()}


def example_of(entry: Entry, data: SampleData) -> PyTree:
    """Returns one example as the method receives it. Raises TaskError as `example_inputs`."""
    inputs = example_inputs(entry, data.task)
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in inputs.items()} or data.example


def entry_batches(entry: Entry, data: SampleData, has_state: bool, rows: int | None) -> list[dict[str, np.ndarray]]:
    """Returns the batches of the samples by name: one, or, of a model with memory, frames of one row.

    They also have the entries that the method does not read.

    Args:
        entry: the entry point.
        data: the dataset.
        has_state: whether the model has memory.
        rows: rows of a batch, for which rows are repeated if there are too few; None: `ROWS`, or those there are.
    """
    if given := example_inputs(entry, data.task):
        found = [given]
    else:
        found = data.batches(1, FRAMES) if has_state else data.batches(rows or ROWS, 1)
    return found if rows is None else [with_rows(batch, rows) for batch in found]


def with_rows(arrays: Arrays, rows: int) -> dict[str, np.ndarray]:
    """Returns the first rows of arrays, which are repeated if there are too few."""
    return {name: np.take(x, range(rows), axis=0, mode="wrap") for name, x in arrays.items()}


def engine_function(found: LoadedRun, data: SampleData, entry: Entry, example: PyTree) -> Callable[[Arrays], Any]:
    """Returns what the engine itself computes: `batch by name -> outputs by name`, as `convoy predict` does.

    The function keeps the state of a model with memory from call to call.

    Args:
        found: the trained model.
        data: the dataset, with the program of the Task.
        entry: the entry point.
        example: one example, as the method receives it.
    """
    program, values = data.program, values_of(found.model)
    params = {name: values[name] for name in program.model.params}
    state = {name: values[name] for name in program.model.model_state}
    leaves, structure = jax.tree.flatten_with_path(example)

    def step(params: Any, state: Any, batch: Arrays) -> tuple[dict[str, Any], Any]:
        module = program.model.module(cast(params, program.compute_dtype), state, None)
        module.eval()
        examples = jax.tree.unflatten(structure, [batch[key(path)] for path, _ in leaves])
        examples = cast(examples, program.compute_dtype, data.task.full_precision)
        outputs = getattr(data.task, entry.name)(module, examples)
        after = program.model.state_of(module)
        after = {name: after[name].astype(x.dtype) for name, x in state.items()}
        return outputs_of(outputs, entry.name), after

    jitted = jax.jit(with_layout(program.layout, step))

    def call(batch: Arrays) -> dict[str, np.ndarray]:
        given = {name: batch[f"{STATE}{name}"] for name in state if f"{STATE}{name}" in batch}
        outputs, after = jitted(params, {**state, **given}, {key(path): batch[key(path)] for path, _ in leaves})
        outputs |= {f"{STATE}{name}": after[name] for name in given}
        return jax.device_get(outputs)

    return call


def first_state(data: SampleData, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the state of a new model for one row, by the names of inputs."""
    if not names:
        return {}
    found = data.program.first_state([name.removeprefix(STATE) for name in names])
    return {f"{STATE}{name}": np.asarray(x)[:1] for name, x in found.items()}
