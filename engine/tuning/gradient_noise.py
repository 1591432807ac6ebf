"""Measures the norms of the gradients of batches at a checkpoint, with the program of the run on its mesh.

The gradients are those of a step, before clipping and before the optimizer: weighted by the loss, with microbatches and
shardings as in training. Two passes over the batches keep no more than two gradients at a time: the first adds them up,
the second takes the product of each with their sum.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.api.objects import Objects
from engine.api.prepared import Prepared, prepare, set_up
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError
from engine.cluster import group
from engine.compile.program import Program
from engine.compile.row_check import mixed_rows
from engine.compile.row_results import losses
from engine.data.batch import Batch, local_rows
from engine.data.batches import Batches
from engine.data.feed import Batching, TrainFeed
from engine.data.source import BaseSource, limited
from engine.metrics.mean import divide
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
from engine.training.arrays import Arrays
from engine.training.gradients import gradients
from engine.training.objective import EVERY, LOSS
from engine.training.state import TrainState
from engine.training.step import step_key
from engine.training.task import has_encode
from engine.training.update import has_own_update
from engine.tuning.noise import GradientNorms

SHARE = 0.1
"""Batches with a larger share of the data are drawn from different epochs, so that they are independent."""


@dataclass(frozen=True)
class Opened:
    """A run whose gradients are measured.

    Attributes:
        saved: the run.
        prepared: its Task, data and mesh.
        program: the program of its last step.
        measure: computes gradients with that program.
        warnings: sentences about what makes the noise scale less than exact.
    """

    saved: SavedRun
    prepared: Prepared
    program: Program
    measure: "Measure"
    warnings: Sequence[str]

    def at_step(self, step: int) -> tuple[Program, "Measure"]:
        """Returns the program whose state a checkpoint has, and what measures with it; frozen groups may differ."""
        if self.program.spec.interval is None:
            return self.program, self.measure
        program, _ = self.prepared.build_program(step=max(step - 1, 0))
        return program, Measure(program)


def open_run(saved: SavedRun, objects: Objects) -> Opened:
    """Returns a run to measure. Every process must call it.

    Raises:
        ConfigError: the noise scale of the Task is not defined.
    """
    with contextlib.nullcontext() if objects.task else saved.code_importable(saved.config.task, {}):
        prepared = prepare(set_up(saved.config), objects, directory=saved.directory).with_sizes()
    if group.count() > 1:
        from engine.parallel.connect import connect  # a single process does not need it

        connect(prepared.mesh)
    program, _ = prepared.build_program()
    check_defined(program)
    return Opened(saved, prepared, program, Measure(program), find_warnings(prepared, program))


def check_defined(program: Program) -> None:
    """Raises ConfigError for a Task whose gradient is not a mean over examples."""
    spec, name = program.spec, type(program.spec.task).__name__
    if has_own_update(spec.task):
        raise ConfigError(f"tune batch: {name} has an update of its own in place of the gradient of one loss.")
    if has_encode(spec.task):
        raise ConfigError(
            f"tune batch: the loss of {name} compares the rows of a batch (encode and loss_of), so that its gradient "
            "is no mean over examples. The noise scale is not defined for it."
        )
    if EVERY not in spec.objective.terms:
        losses = ", ".join(spec.objective.terms)
        raise ConfigError(
            f"tune batch: {name} has a loss for each group ({losses}), so that there is no single gradient. The noise "
            "scale is not defined for it."
        )
    if spec.row_state:
        raise ConfigError(
            f"tune batch: {name} keeps state for each row ({', '.join(spec.row_state[:3])}), so that batches are not "
            "independent. The noise scale is not defined for it."
        )


def find_warnings(prepared: Prepared, program: Program) -> list[str]:
    """Returns sentences about what makes the noise scale of a run less than exact. It may run the loss."""
    task, found = prepared.task, []
    name = type(task).__name__
    mixed = mixed_rows(
        program.evaluation, prepared.source, functools.partial(losses, task), None, training=True, splits=True
    )
    if mixed:
        found.append(
            f"in the loss of {name}, {mixed}. So the noise scale holds for batches of about "
            f"{program.batch_size} rows only."
        )
    if not prepared.config.data.shuffle and not prepared.source.has_sampler:
        found.append("data.shuffle = False: neighbouring examples may be alike, so that the noise scale is too large.")
    if not program.spec.objective.single:
        found.append(f"{name} has several losses: batches count equally, whatever the weights of their losses.")
    return found


def measure(opened: Opened, step: int, count: int) -> GradientNorms:
    """Returns the norms of the gradients of `count` batches at a checkpoint. Every process must call it.

    Args:
        opened: the run.
        step: step of the checkpoint.
        count: number of batches.
    """
    program, run = opened.at_step(step)
    state = opened.saved.restore(step, program)
    state = dataclasses.replace(state, opt_state={}, ema=None, loss_window=state.step)
    trained = {path: state.params[path] for path in program.spec.model.trained}
    sums = jax.tree.map(jnp.zeros_like, trained)
    config, first, second = opened.prepared.config.train, [], []
    batching = Batching(program.batch_size, config.seed, program.spec.batch_sharding, program.spec.total_steps)
    numbers = batch_numbers(opened.prepared, batching, step, count)
    for number, batch in _batches(opened.prepared, batching, numbers):
        sums, found = run(state, batch, number, sums)
        first.append(found)
    for number, batch in _batches(opened.prepared, batching, numbers):
        _, found = run(state, batch, number, sums)
        second.append(found)
    values, dots = (np.asarray(jnp.stack(found), np.float64) for found in (first, second))
    weights = values[:, 2]
    if not np.isfinite(values).all():
        raise ConfigError(f"tune batch: a gradient at step {step} is not finite. Measure at another step.")
    if not weights.all():
        raise ConfigError("tune batch: the loss of a batch has no weight, so that there is no gradient to measure.")
    share = 0.0 if len(numbers) == 1 else program.batch_size / len(_source(opened.prepared))
    return GradientNorms(values[:, 0], dots[:, 1], weights, program.batch_size, values[:, 3], share)


class Measure:
    """Computes `(state, batch, number, sums) -> (sums + w g, [|g|^2, g . sums, w, loss])`.

    g is the gradient of the batch, w the weight of its loss. `number` is that of the batch, for its random keys.
    """

    def __init__(self, program: Program):
        self._mesh = program.mesh
        params = program.abstract_state.params
        shardings = {path: params[path].sharding for path in program.spec.model.trained}
        self._jitted = jax.jit(
            with_layout(program.spec.layout, _make_measure(program)), out_shardings=(shardings, replicated(self._mesh))
        )
        self._compiled: dict[str, jax.stages.Compiled] = {}

    def __call__(self, state: TrainState, batch: Batch, number: int, sums: Arrays) -> tuple[Arrays, jax.Array]:
        key = jax.make_array_from_process_local_data(replicated(self._mesh), np.array(number, np.int32))
        shapes = str([x.shape for x in jax.tree.leaves(batch)])  # several, with examples of several lengths
        if shapes not in self._compiled:
            self._compiled[shapes] = self._jitted.lower(state, batch, key, sums).compile()
            group.meet("the gradients of a batch")  # see `parallel/connect.py`
        return self._compiled[shapes](state, batch, key, sums)


def _make_measure(
    program: Program,
) -> Callable[[TrainState, Batch, jax.Array, Arrays], tuple[Arrays, jax.Array]]:
    spec, names = program.spec, program.task_metrics

    def run(state: TrainState, batch: Batch, number: jax.Array, sums: Arrays) -> tuple[Arrays, jax.Array]:
        grads, metrics, _ = gradients(spec, names, state, batch, step_key(state, number), state.step)
        grads = {path: x.astype(jnp.float32) for path, x in grads.items()}
        total, of_loss = metrics[names.index(LOSS)], spec.objective.single
        weight = total[1] if of_loss else jnp.float32(1)
        more = {path: sums[path] + weight * x for path, x in grads.items()}
        squared: Any = optax.tree.norm(grads, squared=True)
        found = jnp.stack([squared, optax.tree.vdot(grads, sums), weight, divide(total)])
        return more, found.astype(jnp.float32)

    return run


def _batches(prepared: Prepared, batching: Batching, numbers: Sequence[range]) -> Iterator[tuple[int, Batch]]:
    """Yields batches of the training data by their numbers."""
    data = dataclasses.replace(prepared.config.data, workers=0, on_error="stop")
    for part in numbers:
        feed = TrainFeed(prepared.source, data, batching, part)
        try:
            for number in part:
                yield number, feed.next(1)[0]
        finally:
            feed.close()


def batch_numbers(prepared: Prepared, batching: Batching, step: int, count: int) -> list[range]:
    """Returns the numbers of the batches to read, as ranges that are read in order.

    The batches that follow the step, if they are a small share of the data. Otherwise one batch of each of as many
    epochs: batches of one epoch share no example, which makes their gradients more alike than independent ones. Streams
    are read from their beginning.

    Raises:
        ConfigError: a batch has most of the data, so that it has hardly any noise.
    """
    source = _source(prepared)
    if source.has_sampler:
        rows = local_rows(batching.sharding, batching.batch_size)
        shuffle = prepared.config.data.shuffle
        batches = Batches(source, batching.batch_size, batching.seed, shuffle, rows, batching.total_steps or 1)
        first = 0 if batches.has_marks else step
        return [range(first, first + count)]
    if count * batching.batch_size <= SHARE * len(source):
        return [range(step, step + count)]
    if 2 * batching.batch_size > len(source):
        raise ConfigError(
            f"tune batch: train.global_batch_size = {batching.batch_size} is more than half of the {len(source)} "
            "examples, so that batches have hardly any noise to measure. Use a smaller batch."
        )
    epoch = math.ceil(len(source) / batching.batch_size) + 1
    return [range(number, number + 1) for number in range(step, step + count * epoch, epoch)]


def _source(prepared: Prepared) -> BaseSource:
    return limited(prepared.source, prepared.config.data.limit)
