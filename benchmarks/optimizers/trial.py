"""Trains runs with the compiled train step of the engine, on batches that are read before.

The runs of a process that differ in the learning rate or the seed share a compiled program: both are its arguments. All
runs of a task with one seed have the same initial weights and the same batches, for every optimizer. CPU time is that
of the process, of all its threads, during the steps alone.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.optimizers.optimizers import OptimizerSpec
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.spaces import program_key
from benchmarks.optimizers.tasks import VALIDATION, config_of, task_of
from engine.api.prepared import Prepared, prepare, resolve_config, set_up
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.data.feed import Batching, TrainFeed
from engine.loop.evaluation import Evaluator
from engine.parallel.layout import with_layout
from engine.training.state import LOSS_WINDOW, TrainState


class Trials:
    """Trains the runs of one task and optimizer.

    Args:
        optimizer: the optimizer.
        folder: of the recordings of ETH/UCY.
    """

    def __init__(self, optimizer: OptimizerSpec, folder: str):
        self._optimizer, self._folder = optimizer, folder
        self._programs: dict[object, Compiled] = {}
        self._batches: tuple[object, Sequence[tuple[Batch, ...]]] = (None, ())

    def train(self, run: Run, on_progress: Callable[[str], None] = lambda text: None) -> Row:
        """Returns the row of a run.

        Args:
            run: the run.
            on_progress: called with a line after each evaluation.

        Raises:
            ConvoyError: the data is missing, or the settings do not fit together.
        """
        return self.ready(run).train(on_progress)

    def ready(self, run: Run) -> "Trial":
        """Returns a run with its program, learning rates and batches. Raises ConvoyError as `train`."""
        prepared = self._prepared(run)
        key = (run.task, run.steps, program_key(run.settings))
        if key not in self._programs:
            self._programs = {key: Compiled(prepared, run)}  # the runs come in the order of their programs
        compiled = self._programs[key]
        numbers = prepared.build_program()[0].spec.optimizer.numbers
        return Trial(run, compiled, numbers, self._read(prepared, compiled.program, run))

    def _prepared(self, run: Run) -> Prepared:
        config = resolve_config(config_of(run, self._optimizer, self._folder))
        prepared = prepare(set_up(config))
        if self._optimizer.sam is None:
            return prepared
        from benchmarks.optimizers.sharpness import with_sam

        return dataclasses.replace(prepared, task=with_sam(prepared.task, self._optimizer.sam))

    def _read(self, prepared: Prepared, program: Program, run: Run) -> Sequence[tuple[Batch, ...]]:
        """Returns the batches of a run, read by the engine; they are kept for the next run with its seed."""
        rows = prepared.config.train.global_batch_size
        key = (run.task, run.steps, run.seed, rows)
        if self._batches[0] != key:
            self._batches = (None, ())  # before the next ones are read: they take 100 MB
            batching = Batching(rows, run.seed, program.spec.batch_sharding, run.steps)
            feed = TrainFeed(prepared.source, prepared.config.data, batching, range(run.steps))
            try:
                self._batches = (key, [feed.next(1) for _ in range(run.steps)])
            finally:
                feed.close()
        return self._batches[1]


class Compiled:
    """The compiled programs of runs that differ in the learning rate and the seed.

    Attributes:
        program: the program of the engine.
        names: names of the results of the evaluation: the loss, and the second result if the task has one.
        skipped: place of the metric that is 1 for a step whose update is not finite.
        place: puts numbers onto the device.
    """

    def __init__(self, prepared: Prepared, run: Run):
        self.program, self._total = prepared.build_program()
        spec, task = self.program.spec, task_of(run.task)
        [self._step] = self.program.compile_steps(1)
        self._mask = self.program.skip_mask((False,))
        self.place = functools.partial(jax.device_put, device=self._mask.sharding)
        self._averaged = self.program.compile_optimizer_state()
        weights = with_layout(spec.layout, functools.partial(spec.model.init, spec.task))
        shardings = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        self._weights = jax.jit(weights, out_shardings=(shardings.params, shardings.model_state))
        self._shardings = shardings
        section = prepared.config.evaluations[VALIDATION]
        source = prepared.evaluation_sources[VALIDATION]
        rows = section.batch_size or prepared.config.train.global_batch_size
        self._evaluator = Evaluator(VALIDATION, section, source, self.program.evaluation, rows)
        self.names = [f"{VALIDATION}/{name}" for name in (task.loss, task.metric) if name]
        self.skipped = self.program.metric_names.index("skipped")

    def first_state(self, seed: int) -> TrainState:
        """Returns the state at step 0 of a run."""
        params, model_state = self._weights(jax.random.key(seed))
        opt_state, ema = self._averaged({path: params[path] for path in self.program.spec.model.averaged})
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key_data(jax.random.key(seed)),
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            loss_window=jnp.full(LOSS_WINDOW, jnp.nan, jnp.float32),
            ema=ema,
        )
        return jax.device_put(state, self._shardings)

    def advance(
        self, state: TrainState, batches: Sequence[tuple[Batch, ...]], rates: jax.Array
    ) -> tuple[TrainState, np.ndarray, float]:
        """Returns the state after one step with each batch, metrics `[steps, 1, metrics]`, and CPU seconds."""
        begin, sums = time.process_time(), []
        for batch in batches:
            state, metrics = self._step(state, batch, self._mask, rates)
            sums.append(metrics)
        jax.block_until_ready(state)
        seconds = time.process_time() - begin
        return state, np.stack(sums)[:, 0], seconds

    def evaluate(self, state: TrainState, step: int) -> list[float]:
        """Returns the loss by which runs are judged, and the second result if the task has one."""
        found: Any = self._evaluator.run(state, step=step)
        return [float(found[name]) for name in self.names]


class Trial:
    """A run that is ready to start.

    Args:
        run: the run.
        compiled: its program.
        numbers: the learning rates, as the program takes them.
        batches: one for each step.
    """

    def __init__(self, run: Run, compiled: Compiled, numbers: np.ndarray, batches: Sequence[tuple[Batch, ...]]):
        self._run, self._compiled, self._batches = run, compiled, batches
        self._rates = compiled.place(numbers)
        self._state = compiled.first_state(run.seed)
        sizes = (sum(leaf.nbytes for leaf in jax.tree.leaves(x)) for x in (self._state.opt_state, self._state.params))
        self._state_bytes, self._parameter_bytes = sizes
        self._last, self._cpu_s, self._fastest_s = 0, 0.0, math.inf
        self._results: list[list[float]] = []

    def advance(self, last: int) -> bool:
        """Trains up to a step; returns whether an update was finite."""
        batches = self._batches[self._last : last]
        self._state, metrics, seconds = self._compiled.advance(self._state, batches, self._rates)
        self._cpu_s, self._fastest_s = self._cpu_s + seconds, min(self._fastest_s, seconds / (last - self._last))
        self._last = last
        return not metrics[:, self._compiled.skipped].all()

    def train(self, on_progress: Callable[[str], None]) -> Row:
        """Trains the run, and evaluates it at its steps."""
        diverged = False
        for last in self._run.evaluations:
            finite = self.advance(last)
            self._results.append(self._compiled.evaluate(self._state, last))
            loss = self._results[-1][0]
            on_progress(f"{last} of {self._run.steps} steps, {self._compiled.names[0]} {loss:.4f}")
            if diverged := not (finite and math.isfinite(loss)):
                break
        return self.row(diverged)

    def row(self, diverged: bool = False) -> Row:
        """Returns the row of what was trained."""
        return Row(
            run=self._run,
            loss=[values[0] for values in self._results],
            metric=[values[1] for values in self._results if len(values) > 1],
            cpu_s=self._cpu_s,
            step_ms=1000 * self._fastest_s,
            state_bytes=self._state_bytes,
            parameter_bytes=self._parameter_bytes,
            diverged=diverged,
        )
