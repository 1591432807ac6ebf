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

_LOSS, _SKIPPED = "loss", "skipped"  # metrics of a step


class Trials:
    """Trains the runs of one task and optimizer.

    Args:
        optimizer: the optimizer.
        folder: of the recordings of ETH/UCY.
    """

    def __init__(self, optimizer: OptimizerSpec, folder: str):
        self._optimizer, self._folder = optimizer, folder
        self._programs: dict[object, _Compiled] = {}
        self._batches: tuple[object, Sequence[tuple[Batch, ...]]] = (None, ())

    def train(self, run: Run, on_progress: Callable[[str], None] = lambda text: None) -> Row:
        """Returns the row of a run.

        Args:
            run: the run.
            on_progress: called with a line after each evaluation.

        Raises:
            ConvoyError: the data is missing, or the settings do not fit together.
        """
        prepared = self._prepared(run)
        key = (run.task, run.steps, program_key(run.settings))
        if key not in self._programs:
            self._programs = {key: _Compiled(prepared, run)}  # the runs come in the order of their programs
        compiled = self._programs[key]
        numbers = prepared.build_program()[0].spec.optimizer.numbers
        return compiled.train(run, numbers, self._read(prepared, compiled.program, run), on_progress)

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


class _Compiled:
    """The compiled programs of runs that differ in the learning rate and the seed."""

    def __init__(self, prepared: Prepared, run: Run):
        self.program, self._total = prepared.build_program()
        spec, task = self.program.spec, task_of(run.task)
        [self._step] = self.program.compile_steps(1)
        self._mask = self.program.skip_mask((False,))
        self._numbers = functools.partial(jax.device_put, device=self._mask.sharding)
        self._averaged = self.program.compile_optimizer_state()
        weights = with_layout(spec.layout, functools.partial(spec.model.init, spec.task))
        shardings = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        self._weights = jax.jit(weights, out_shardings=(shardings.params, shardings.model_state))
        self._shardings = shardings
        section = prepared.config.evaluations[VALIDATION]
        source = prepared.evaluation_sources[VALIDATION]
        rows = section.batch_size or prepared.config.train.global_batch_size
        self._evaluator = Evaluator(VALIDATION, section, source, self.program.evaluation, rows)
        self._names = [f"{VALIDATION}/{name}" for name in (task.loss, task.metric) if name]

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

    def train(
        self,
        run: Run,
        numbers: np.ndarray,
        batches: Sequence[tuple[Batch, ...]],
        on_progress: Callable[[str], None],
    ) -> Row:
        """Trains a run, and evaluates it at its steps."""
        state, rates = self.first_state(run.seed), self._numbers(numbers)
        sizes = {name: _bytes(tree) for name, tree in (("state", state.opt_state), ("parameters", state.params))}
        results: list[list[float]] = []
        cpu_s, fastest_s, first, diverged = 0.0, math.inf, 0, False
        skipped = self.program.metric_names.index(_SKIPPED)
        for last in run.evaluations:
            begin, sums = time.process_time(), []
            for batch in batches[first:last]:
                state, metrics = self._step(state, batch, self._mask, rates)
                sums.append(metrics)
            jax.block_until_ready(state)
            seconds = time.process_time() - begin
            cpu_s, fastest_s = cpu_s + seconds, min(fastest_s, seconds / (last - first))
            found: Any = self._evaluator.run(state, step=last)
            results.append([float(found[name]) for name in self._names])
            steps = np.stack(sums)[:, 0, skipped]
            diverged = not math.isfinite(results[-1][0]) or bool(steps[:, 0].all())
            on_progress(f"{last} of {run.steps} steps, {self._names[0]} {results[-1][0]:.4f}")
            if diverged:
                break
            first = last
        return Row(
            run=run,
            loss=[values[0] for values in results],
            metric=[values[1] for values in results if len(values) > 1],
            cpu_s=cpu_s,
            step_ms=1000 * fastest_s,
            state_bytes=sizes["state"],
            parameter_bytes=sizes["parameters"],
            diverged=diverged,
        )


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
