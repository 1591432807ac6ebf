"""The loop: a Task, a Mesh and Data in, a trained state and its summary out.

Owns: the order of things at a step (save, evaluate, call hooks, draw, step) and how many steps one dispatch takes.
Does not own: anything that these do; each has a room of its own.

Terms. *Step*: global batches consumed; after step n the state reflects batches 0 to n-1. *Dispatch*: one call of the
compiled program, 1 or `train.steps_per_dispatch` steps. *Due*: a policy's answer for a step; periods know nothing of
each other, and a dispatch is cut where the next one is due.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from engine.checkpoint.checkpointer import build_checkpointer
from engine.checkpoint.restore_latest import restore_latest
from engine.checkpoint.store import StorageError
from engine.checkpoint.warm_start import read_weights
from engine.cluster import peers, processes, shutdown
from engine.config import hardware
from engine.config.duration import RunSize
from engine.config.schema import Config
from engine.data.bad_examples import BadExamples
from engine.data.feed import TrainFeed
from engine.data.source import Source
from engine.evaluation import build_evaluations, check_best
from engine.observe import wording
from engine.observe.profiler import ProfileWindow
from engine.observe.recorder import Recorder, Sums
from engine.observe.report import Summary
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter, metrics_of
from engine.resilience.divergence import Divergence
from engine.resilience.preemption import Interrupted, Preempted, Preemption
from engine.resilience.replica_check import ReplicaCheck
from engine.resilience.watchdog import build_watchdog
from engine.run.directory import RunDirectory
from engine.run.jsonl import Lines
from engine.run.ledger import Ledger
from engine.training.build import build_program
from engine.training.state import State
from engine.training.step import BAD_EXAMPLES
from engine.training.task import Task

LOOK_S = 0.05  # between two looks at what goes on beside the loop; each step, where steps are longer
READ_S = 0.01  # between two readings of results in a single process; several processes decide at the same step


class Hook(Protocol):
    """Something of the user's that the loop calls: `run(trainer, state, step)` at each step that is due."""

    def run(self, trainer: "Trainer", state: State, step: int) -> None: ...


class Trainer:
    """Trains a Task on a mesh with data, in a run directory.

    Args:
        task: what to train.
        mesh: where.
        source: the training examples.
        config: everything else.
        directory: the run; a checkpoint in it is where training goes on.
        evaluation_sources: one source for each of `config.evaluations`.
        hooks: objects with `run(trainer, state, step)`, one for each of `config.hooks`.
        on_row: called with each row of metrics, in another thread.
        on_message: called with sentences for the user; hooks call it as `trainer.say`.
        on_phase: called with "training" or "evaluating" when it begins, in another thread.
    """

    def __init__(
        self,
        task: Task,
        mesh: Mesh,
        source: Source,
        config: Config,
        directory: RunDirectory,
        *,
        evaluation_sources: Mapping[str, Source],
        hooks: Mapping[str, Hook],
        on_row: Callable[[dict[str, Any]], None],
        on_message: Callable[[str], None],
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        self.config, self.directory, self._source = config, directory, source
        self._on_row, self.say, self._on_phase = on_row, on_message, on_phase
        self.program, self.total_steps = build_program(task, mesh, source, config)
        self._size = size = RunSize(config.train.global_batch_size, len(source), self.total_steps)
        self.evaluations = build_evaluations(config.evaluations, evaluation_sources, self.program, size)
        check_best(config.checkpoint.best, self.evaluations)
        self._hooks = [(size.period(config.hooks[name].every), hooks[name]) for name in hooks]
        self._watchdog = build_watchdog(config, directory)
        self.checkpoints = build_checkpointer(config, directory, len(source), self.total_steps, self.say)
        every = config.resilience.replica_check
        compared = None if every is None else size.period(every)
        self._replicas = ReplicaCheck(compared, self.program.abstract_state)
        self._divergence = Divergence(config.resilience.divergence, self.program.metric_names, self.say)
        self._recorder: Recorder | None = None
        self._row: dict[str, Any] = {}
        self._unfinished: Sums = {}  # of the row of metrics that the checkpoint cut
        self._results: dict[str, float] = {}
        newest = self.checkpoints.store.latest()
        self._first = self._step = peers.broadcast_from_primary(newest, "the newest checkpoint") or 0
        self._started = time.monotonic()

    @property
    def step(self) -> int:
        """Steps done; before `run`, the step from which it goes on if its checkpoint is good."""
        return self._step

    def run(self) -> Summary:
        """Trains to the end, from the newest checkpoint where there is one.

        Raises:
            Preempted, Interrupted: asked to stop; the state is saved.
            Diverged: the loss is not finite, and the policy knows no way on.
            ReplicaError: copies of the state differ.
            ConvoyError: storage or data failed.
        """
        config, stopwatch = self.config, self.directory.stopwatch
        with contextlib.ExitStack() as stack:
            preemption = stack.enter_context(Preemption())
            stack.enter_context(self._watchdog)
            stack.enter_context(self.checkpoints)
            state, step = self._first_state()
            for text in self.program.warnings:
                self.say(f"warning: {text}")
            if step == self.total_steps:
                self.say("this run is finished; to train longer, set train.total, or --fresh to start anew")
            sizes = {1, config.train.steps_per_dispatch} if step < self.total_steps else ()
            with stopwatch.during("compile"):
                steps = {k: self.program.steps(k) for k in sizes}
            writer = stack.enter_context(self._make_writer())
            stack.enter_context(stopwatch.written_by(writer.push))
            self._recorder = recorder = self._make_recorder(writer)
            stack.callback(recorder.close)
            recorder.go_on(self._unfinished)
            if steps:
                recorder.note(step, {"compile_s": self.program.compile_s})
            profile = ProfileWindow(config.profile.start, config.profile.steps, self.directory.traces, self.say)
            stack.callback(lambda: profile.close(self._step))
            stack.enter_context(peers.location_reported(lambda: self._step))
            on_batch = self._ledger(stack) if config.log.examples else None
            bad = self._bad_examples(stack) if config.data.on_error == "skip" else None
            while True:
                with contextlib.closing(self._feed(step, on_batch, bad)) as feed, self._watchdog.training(step):
                    try:
                        if self._loop(state, step, steps, feed, recorder, preemption, profile):
                            break
                    finally:
                        stopwatch.reached(self._step, feed.wait_s)
                recorder.go_back()
                state, step = self._first_state()
                recorder.go_on(self._unfinished)
        return self.summary()

    def _feed(self, step: int, on_batch: Any, bad: BadExamples | None) -> TrainFeed:
        train = self.config.train
        return TrainFeed(
            self._source,
            self.config.data,
            batch_size=train.global_batch_size,
            seed=train.seed,
            sharding=self.program.spec.batch_sharding,
            start=step,
            stop=self.total_steps,
            steps_per_dispatch=train.steps_per_dispatch,
            on_batch=on_batch,
            bad=bad,
        )

    def _loop(
        self,
        state: State,
        step: int,
        steps: Mapping[int, Any],
        feed: TrainFeed,
        recorder: Recorder,
        preemption: Preemption,
        profile: ProfileWindow,
    ) -> bool:
        """Save, evaluate, call hooks, draw, step: to the last step (True), or to where the run goes back (False)."""
        last, most, stopwatch = self.total_steps, self.config.train.steps_per_dispatch, self.directory.stopwatch
        recorder.phase("training")
        stopwatch.begin(step)
        due = cut = step
        look_at, told = 0.0, shutdown.counter()
        not_held, programs = {k: self.program.held((False,) * k) for k in steps}, steps
        while True:
            self._step = told[0] = step
            attend = step >= due or self._divergence.asks
            if attend or time.monotonic() >= look_at:
                self._look(step, feed.wait_s)
                look_at = time.monotonic() + LOOK_S
            if attend:
                stopping = preemption.requested()
                force = stopping or (step > 0 and (step == last or self._selects_best(step)))
                saving = force or self.checkpoints.policy.due(step)
                if self._goes_back(state, step, saving, stopping or step == last, recorder):
                    return False
                self._replicas.check(step, state)
                row = recorder.unfinished() if saving else {}
                position = {**feed.position, "skipped": sorted(self._divergence.skipped), "row": row}
                with stopwatch.during("save stall"), self._watchdog.storing("saving"):
                    if not self._divergence.asks and self.checkpoints.maybe_save(step, state, position, force):
                        self.say(f"saving checkpoint of step {step}")
                        stopwatch.flush()
                        recorder.saved()
                    if stopping:
                        raise self._stopped(step, preemption)
                if not self._evaluate(state, step, recorder, preemption):
                    continue
                if step == last:
                    break
                with self._watchdog.patient("profiling"):
                    profile.at(step, state["step"])
                programs = profile.marked(steps, step)
                due, cut = self._next_due(step, profile)
            k = most if step + most <= cut else 1
            if (batches := preemption.unless_stopped(feed.next, k)) is None:
                feed.unread(step)
                due = step
                continue
            self._watchdog.dispatched = step + k
            held = self.program.held(self._divergence.held(step, k)) if self._divergence.skipped else not_held[k]
            state, metrics = programs[k](state, batches, held)
            recorder.push(step, metrics, feed.wait_s)
            step += k
        with stopwatch.during("save stall"), self._watchdog.storing("saving"):
            self.checkpoints.finish()
        return True

    def _look(self, step: int, wait_s: float) -> None:
        """Takes in what goes on beside the loop, and does not fall on a certain step."""
        self.directory.stopwatch.reached(step, wait_s)
        self.directory.check_lease()
        if self.checkpoints.has_news:
            with self.directory.stopwatch.during("save stall"), self._watchdog.storing("saving"):
                self.checkpoints.look()

    def _goes_back(self, state: State, step: int, saving: bool, over: bool, recorder: Recorder) -> bool:
        """Whether the run has to go back to its newest checkpoint; what is to be saved is known to be sound."""
        if saving or self._divergence.asks:
            recorder.settle()
        broken = self.program.not_finite(state) if saving else []
        if not (broken or self._divergence.asks):
            return False
        with self._watchdog.storing("saving"):
            self.checkpoints.settle()
        saved = peers.broadcast_from_primary(self.checkpoints.store.steps(), "the checkpoints")
        return self._divergence.goes_back(step, saved, over, broken)

    def _evaluate(self, state: State, step: int, recorder: Recorder, preemption: Preemption) -> bool:
        """Runs the evaluations and hooks that are due, outside the training rates; False when it was asked to stop."""
        evaluations = [e for e in self.evaluations if step > 0 and e.period.due(step)]
        hooks = [hook for period, hook in self._hooks if step > 0 and period.due(step)]
        if not evaluations and not hooks:
            return True
        recorder.settle()  # still as training: a step that hangs has a step's bound, not an evaluation's
        start = time.monotonic()
        with self.directory.stopwatch.during("evaluation"), self._watchdog.patient("evaluating"):
            if evaluations:
                recorder.phase("evaluating")
            # An earlier attempt may have stopped right after this evaluation.
            known = self.checkpoints.results(step) if step == self._first else {}
            results: dict[str, float] = {}
            for evaluation in evaluations:
                if known.keys() >= set(evaluation.metrics):
                    self._results |= known
                elif (found := evaluation.run(state, preemption, self._watchdog.beat)) is None:
                    return False
                else:
                    results |= found
            if results:
                self._results |= results
                recorder.note(step, results)
                self.checkpoints.record(step, results)
                self.say(f"step {step}: {wording.pairs(results)}")
            for hook in hooks:
                hook.run(self, state, step)
        recorder.phase("training")
        recorder.pause(time.monotonic() - start)
        return True

    def _next_due(self, step: int, profile: ProfileWindow) -> tuple[float, float]:
        """The next step where there may be more to do than to draw and to step, and the next that ends a dispatch."""
        policy = self.checkpoints.policy
        periods = [*(evaluation.period for evaluation in self.evaluations), *(period for period, _ in self._hooks)]
        next_ = [self.total_steps, policy.next_possible(step), profile.next_edge(step), self._replicas.next_after(step)]
        cut = min(*next_, *(period.next_after(step) for period in periods))
        return min(cut, policy.next_asked(step)), cut

    def _selects_best(self, step: int) -> bool:
        """Whether an evaluation that is due at this step decides which checkpoint is best."""
        best = self.config.checkpoint.best
        return any(best in e.metrics and e.period.due(step) for e in self.evaluations)

    def _first_state(self) -> tuple[State, int]:
        """The newest good checkpoint's state, or a new one where there never was a checkpoint."""
        store, stopwatch = self.checkpoints.store, self.directory.stopwatch
        with stopwatch.during("restore"), self._watchdog.storing("restoring"):
            abstract, stacked = self.program.abstract_state, self.program.spec.model.stacked
            state, step = restore_latest(store, abstract, stacked, self.say) or (None, 0)
        self._unfinished = {}
        if state is None:
            with stopwatch.during("compile"):
                state = self._new_state()
        else:
            position = store.position(step)
            self._divergence.resume(position.get("skipped", ()))
            self._unfinished = position.get("row", {})
            self.say(f"resuming from step {step}")
        with stopwatch.during("compile"):
            store.prepare(state)
        self._first = self._step = step
        return state, step

    def _new_state(self) -> State:
        """The state of step 0: random, or with the weights of another run."""
        if not self.config.init.checkpoint:
            return self.program.init()
        weights = read_weights(self.config.init, self.program.abstract_state, self.program.spec.model.stacked)
        self.say(weights.told)
        return self.program.init(weights.params, weights.carried)

    def _make_writer(self) -> MetricWriter:
        if not processes.is_primary():
            return MetricWriter(None, None)
        run, events = self.directory, self.config.log.tensorboard
        return MetricWriter(run.metrics, run.tensorboard if events else None, run.check_lease)

    def _ledger(self, stack: contextlib.ExitStack) -> Callable[[int, list[int], list[int]], None]:
        ledger = Ledger(self.directory.examples, processes.index(), processes.count(), self.directory.attempt)
        return stack.enter_context(contextlib.closing(ledger)).write

    def _bad_examples(self, stack: contextlib.ExitStack) -> BadExamples:
        lines = Lines(self.directory.bad_examples, processes.index(), processes.count(), self.directory.attempt)
        return BadExamples(stack.enter_context(contextlib.closing(lines)).add, self.say)

    def _make_recorder(self, writer: MetricWriter) -> Recorder:
        train, mesh, found = self.config.train, self.program.mesh, hardware.find(jax.devices()[0].device_kind)
        peak = found.peak(train.precision) if found else None

        def on_row(row: dict[str, Any]) -> None:
            self._row = metrics_of(row)
            self._on_row(row)

        return Recorder(
            self.program.metric_names,
            last_value=("learning_rate",),
            summed=("skipped", BAD_EXAMPLES),
            writer=writer,
            throughput=Throughput(train.global_batch_size, self.program.flops_per_step, peak and peak * mesh.size),
            period=self._size.period(self.config.log.every),
            attempt=self.directory.attempt,
            on_row=on_row,
            on_phase=self._on_phase,
            on_values=self._arrived,
            read_every_s=READ_S if processes.count() == 1 else 0.0,
        )

    def _arrived(self, first: int, values: np.ndarray) -> None:
        """The results of the steps from `first` on, `[steps, names, 2]`, are there."""
        self._watchdog.arrived = first + len(values)
        self._divergence.look(first, values)

    def _stopped(self, step: int, preemption: Preemption) -> Interrupted | Preempted:
        kind, of = Interrupted if preemption.interrupted else Preempted, f"step {step} of {self.total_steps}"
        try:
            self.checkpoints.finish()
        except StorageError as error:
            return kind(f"asked to stop at {of}. {error}")
        return kind(f"asked to stop; the state of {of} is saved in {self.directory}.")

    def summary(self) -> Summary:
        """What is reached so far."""
        best = self.checkpoints.retention.best()
        return Summary(
            state="training",
            name=self.config.name,
            directory=self.directory,
            step=self._step,
            total_steps=self.total_steps,
            metrics={**self._row, **self._results},
            best={} if best is None else {str(self.config.checkpoint.best): best},
            checkpoints=self.checkpoints.store.steps(),
            wall_s=time.monotonic() - self._started,
            compile_s=self.program.compile_s,
            rates=self._recorder.rates() if self._recorder else {},
            scheduled=self.config.optimizer.schedule != "constant",
        )
