"""Measures a quantized model by the evaluations of its run: `Task.evaluate` over whole datasets, with rounded products.

The results are those of `convoy evaluate`, but they are not stored, since they do not belong to the checkpoint.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from engine.api.saved_run import LoadedRun
from engine.base.errors import ConfigError, ConvoyError, did_you_mean
from engine.compile.build import build_evaluation_program
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.program import DTYPES
from engine.config.schema import Evaluation, MeshSpec
from engine.data.adapt import build_source
from engine.data.feed import EvaluationFeed
from engine.data.source import BaseSource
from engine.experiments.comparison import Difference
from engine.experiments.joined import Joined
from engine.experiments.pairs import Paired
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import build_evaluations
from engine.metrics.example_file import read_parquet
from engine.metrics.results import File, scalars
from engine.metrics.slices import Examples
from engine.parallel.mesh import batch_sharding, make_mesh
from engine.quantization.methods import with_products
from engine.quantization.plan import INPUT_SCALE, SCALE, Plan
from engine.training.state import Weights
from engine.training.task import Task, for_sources

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of evaluations.

    Attributes:
        metrics: full name -> number.
        examples: name of an evaluation -> metrics of its examples, if they can be kept.
    """

    metrics: Mapping[str, float]
    examples: Mapping[str, Examples] = dataclasses.field(default_factory=dict)


class Evaluations:
    """The evaluations of a run, for its model with any layers quantized.

    Args:
        found: the trained model.
        only: names of the evaluations; empty for all.
        on_message: called with sentences for the user.

    Raises:
        ConfigError: the run has no such evaluation.
    """

    def __init__(
        self, found: LoadedRun, only: Sequence[str] = (), on_message: Callable[[str], None] = lambda text: None
    ):
        sections = found.config.evaluations
        for name in only:
            if name not in sections:
                near = did_you_mean(name, sections)
                raise ConfigError(f"evaluation = {name!r}: the run has none.{near} Evaluations: {', '.join(sections)}.")
        chosen = [name for name in sections if name in only or not only]
        if not chosen:
            raise ConfigError("the run has no evaluations, which would measure it. Add evaluations.NAME to its config.")
        self._found, self._say, self._keeps_examples = found, on_message, True
        self._sections = {name: _plain(sections[name]) for name in chosen}
        self.sources: dict[str, BaseSource] = {
            name: build_source(section.data, f"evaluations.{name}.data", finite=True)
            for name, section in self._sections.items()
        }
        """Name of an evaluation -> its examples."""

    def batches(
        self, name: str, inputs: Mapping[str, jax.ShapeDtypeStruct], examples: int
    ) -> list[dict[str, np.ndarray]]:
        """Returns inputs of a function, from batches that are spread over the data of an evaluation.

        Args:
            name: the evaluation.
            inputs: name -> shape and dtype of one row of what the function reads: entries of a batch by their paths.
                Others, such as the memory of a model, are zeros.
            examples: about how many; at least one batch.
        """
        section = self._sections[name]
        rows = section.batch_size or self._found.config.train.global_batch_size
        sharding = batch_sharding(_mesh())
        feed = EvaluationFeed(self.sources[name], section.data, batch_size=rows, sharding=sharding)
        wanted = max(1, min(len(feed), -(-examples // rows)))
        chosen = {i * len(feed) // wanted for i in range(wanted)}
        found = []
        with contextlib.closing(feed.with_host_batches()) as batches:
            for number, (batch, _) in enumerate(batches):
                if number in chosen:
                    entries = jax.tree.leaves_with_path(batch.examples)
                    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in entries}
                    zeros = {key: np.zeros((len(batch.weight), *x.shape), x.dtype) for key, x in inputs.items()}
                    found.append({key: np.asarray(named.get(key, zeros[key])) for key in inputs})
        return found

    def measure(self, plan: Plan | None = None, arrays: Mapping[str, Any] | None = None) -> Measured:
        """Returns the results of the model.

        Args:
            plan: what is quantized; None for nothing.
            arrays: the arrays of the quantized function, `Quantized.weights`; needed with a plan.
        """
        config, task = self._found.config, self._found.task
        task = for_sources(task, {f"evaluations.{name}.data": source for name, source in self.sources.items()})
        if plan is not None:
            task = _quantized_task(task, plan, arrays or {}, DTYPES[config.train.precision])
        program = build_evaluation_program(task, _mesh(), config.train, config.sharding, config.optimizer.trainable)
        params = program.model.params_of(self._found.model)
        if plan is not None and plan.scheme.is_integer:
            params |= {layer.name: jnp.asarray((arrays or {})[layer.name]) for layer in plan.layers}
        state = program.model.state_of(self._found.model)
        weights = Weights(params, {path: state[path] for path in program.model.model_state}, None)
        metrics, kept = dict[str, float](), dict[str, Examples]()
        for evaluator in self._evaluators(program):
            results = evaluator.run(weights, step=self._found.step) or {}
            metrics |= scalars(results)
            for file in results.values():
                if isinstance(file, File):
                    kept[evaluator.name] = _read(file)
        return Measured(metrics, kept)

    def _evaluators(self, program: EvaluationProgram) -> list[Evaluator]:
        """Returns the evaluations of a program, which keep the metrics of each example if they can."""
        size = self._found.config.train.global_batch_size
        if self._keeps_examples:
            sections = {name: dataclasses.replace(x, per_example=True) for name, x in self._sections.items()}
            try:
                return build_evaluations(sections, self.sources, program, size)
            except ConvoyError as error:
                self._keeps_examples = False
                self._say(f"the quality has no intervals, which need the metrics of each example: {error}")
        return build_evaluations(self._sections, self.sources, program, size)


def differences(before: Measured, after: Measured) -> list[Difference]:
    """Returns the differences of all numbers of examples with intervals, by a paired bootstrap as `convoy compare`."""
    found: list[Difference] = []
    for name in before.examples.keys() & after.examples.keys():
        pairs = Paired(1, Joined(name, ([before.examples[name]], [after.examples[name]])))
        found += [each for each in pairs.differences(RESAMPLES) if not each.part]
    return found


def _mesh() -> Mesh:
    return make_mesh(MeshSpec(), jax.local_devices()[:1])


def _plain(section: Evaluation) -> Evaluation:
    """Returns an evaluation without figures and lists of examples."""
    return dataclasses.replace(section, figures=0, worst=0, slices={}, tags={}, per_example=False)


def _quantized_task(task: Task, plan: Plan, arrays: Mapping[str, Any], dtype: DTypeLike) -> Task:
    """Returns a Task whose methods compute the products of a quantized function.

    Its model holds the codes of the layers in place of their floats, so that they are not computed in each batch.

    Args:
        task: the Task.
        plan: what is quantized.
        arrays: the arrays of the quantized function.
        dtype: of the floats of the model.
    """
    scales = {
        layer.name + end: jnp.asarray(arrays[layer.name + end])
        for layer in plan.layers
        for end in (SCALE, INPUT_SCALE)
        if layer.name + end in arrays
    }

    names = {layer.name: layer for layer in plan.layers}

    def stored(name: str, x: jax.Array) -> jax.Array:
        if name not in names or x.dtype == jnp.int8:
            return x
        return plan.encoded(names[name], x)[0]  # where the engine traces the methods with the model of the Task

    def compute(function: Callable[[Mapping[str, jax.Array]], Any], weights: Mapping[str, jax.Array]) -> Any:
        specs = {
            name: jax.ShapeDtypeStruct(x.shape, dtype if name in names else x.dtype) for name, x in weights.items()
        }
        if plan.scheme.is_integer:
            held = {**{name: stored(name, x) for name, x in weights.items()}, **scales}
        else:
            held = plan.stored(weights, {})
        return plan.function(lambda weights, _: function(weights), specs)(held, ())

    return with_products(task, compute)


def _read(file: File) -> Examples:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.parquet"
        path.write_bytes(file.content)
        return read_parquet(path)
