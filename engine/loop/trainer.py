"""The training loop: trains a Task on a mesh of devices and writes checkpoints and metrics to a run directory.

`Trainer.train` is a generator of boundaries. At a boundary, the events that are due run in the order of `_events`. Then
the loop dispatches steps until the next event is due.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from engine.base.duration import RunSize
from engine.checkpoint.checkpointer import build_checkpointer
from engine.cluster import group, peer_failure, verdict
from engine.compile.build import build_program, check_unrolled
from engine.compile.compiler import open_compiler
from engine.compile.memory_check import check_memory, training_batches
from engine.compile.shapes import CompiledSteps
from engine.config.schedules import followers
from engine.config.schema import Config
from engine.config.text import to_text
from engine.data.feed import TrainFeed
from engine.data.source import Source, check_source, example_spec
from engine.data.stages import STAGES
from engine.loop.attempt import Attempt
from engine.loop.compile_ahead import CompileAhead
from engine.loop.divergence import Divergence
from engine.loop.evaluation import Evaluation, build_evaluations, check_metric_names, check_watched
from engine.loop.events import (
    Boundary,
    CheckReplicas,
    DivergenceCheck,
    EarlyStop,
    Evaluate,
    Event,
    PrepareSaves,
    Profile,
    Results,
    Rollback,
    Save,
    Schedule,
)
from engine.loop.hooks import CallHook, Hook, HookResults, hook_events
from engine.loop.phases import SAVING, TRAINING, Phases
from engine.loop.preemption import Preemption
from engine.loop.replica_check import ReplicaCheck
from engine.loop.stopping import StopRecord, stopped_reason, write
from engine.loop.stragglers.monitor import StragglerMonitor
from engine.loop.watchdog import Watchdog
from engine.observe.profiler import ProfileWindow
from engine.observe.reading import Reading
from engine.observe.recorder import Recorder
from engine.observe.summary import Summary
from engine.observe.writer import metrics_of
from engine.observe.zero_weights import ZeroWeights
from engine.run.directory import RunDirectory
from engine.training.state import TrainState, evaluation_params
from engine.training.task import Task

POLL_S = 0.05  # seconds between two polls of the lease and of finished saves, within a series of dispatches


class Trainer:
    """Trains a Task on a mesh of devices.

    Args:
        task: the Task to train.
        mesh: the devices.
        source: the training examples.
        config: all other settings.
        directory: the run directory; training resumes from its newest checkpoint, if there is one.
        evaluation_sources: the source of each evaluation in `config.evaluations`, by name.
        hooks: the hook of each entry in `config.hooks`, by name.
        on_row: called with the training metrics of each logging interval, in the writer thread.
        on_message: called with sentences for the user; hooks can call it as `trainer.say`.
        on_phase: called with "training" or "evaluating" when the phase starts, in the writer thread.
        on_slowest: called with a sentence about the process that slows down the run when that changes, in the writer
            thread; "" for none.
        observers: dotted paths of functions that make observers of the run (`loop/observers.py`).
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
        on_row: Callable[[dict[str, float]], None],
        on_message: Callable[[str], None],
        on_phase: Callable[[str], None] = lambda phase: None,
        on_slowest: Callable[[str], None] = lambda text: None,
        observers: Sequence[str] = (),
    ):
        self.config, self.directory, self._hooks = config, directory, hooks
        self._on_row, self.say, self._on_phase = on_row, on_message, on_phase
        self._on_slowest = on_slowest
        for name, each in {"source": source, **evaluation_sources}.items():
            check_source(each, "source" if each is source else f"evaluation_sources[{name!r}]")
        self.program, self.total_steps = build_program(task, mesh, source, config)
        self.program.compiler = open_compiler(config, self.say)
        check_metric_names(self.program, config.evaluations, config.hooks)
        self._size = size = RunSize(config.train.global_batch_size, len(source), self.total_steps)
        check_unrolled(self.program, config.train)
        batches = training_batches(config, example_spec(source), self.total_steps)
        warnings = check_memory(batches, mesh, self.program.abstract_state)
        self.evaluations = build_evaluations(
            config.evaluations, evaluation_sources, self.program.evaluation, size.batch_size
        )
        for evaluation in self.evaluations:
            warnings += evaluation.warnings
        directory.messages += [f"warning: {text}" for text in warnings]
        named = {config.stop.metric: "stop.metric", config.checkpoint.best: "checkpoint.best"}
        self._watched = {metric: field for metric, field in named.items() if metric is not None}
        check_watched(self._watched, self.evaluations, hooks)
        self.checkpoints = build_checkpointer(config.checkpoint, to_text(config), directory, size, self.say)
        self._divergence = Divergence(config.resilience.divergence, self.program.metric_names, self.say)
        self._zero_weights = ZeroWeights(math.ceil(len(source) / size.batch_size), self.say)
        hang_s, timeout_s = config.resilience.hang.seconds, config.checkpoint.timeout.seconds
        k = config.train.steps_per_dispatch
        self._watchdog = Watchdog(hang_s, timeout_s, directory.stacks, directory.attempt, k)
        self._preemption = Preemption(lambda: self._phase.name)
        self._phase = Phases(directory.stopwatch, self._watchdog)
        self._attempt = Attempt(
            self.program, source, config, directory, self.checkpoints, self._phase, self.say, observers
        )
        profile = config.profile
        self._profile = ProfileWindow(profile.start, profile.steps, directory.traces, self.say)
        self._recorder: Recorder | None = None
        self._stragglers: StragglerMonitor | None = None  # None in a single process
        self._row: dict[str, float] = {}  # training metrics of the latest logging interval
        self._results: dict[str, float] = {}  # latest results of evaluations and hooks; `Results` updates them
        self._stop_reason = ""  # why the run ends or has ended before its last step
        newest = group.run_on_primary(self.checkpoints.store.latest, "the newest checkpoint")
        self._step, self._resumed = newest or 0, newest is not None
        self._started = time.monotonic()
        self._readers = 1

    @property
    def step(self) -> int:
        """Number of dispatched steps; before training, the step of the newest checkpoint, or 0."""
        return self._step

    def model(self, state: TrainState) -> nnx.Module:
        """Returns the model of a state in evaluation mode, with the averaged weights if the run has them.

        For hooks. Its arrays are those of the state, so they are valid until the hook returns.
        """
        weights = evaluation_params(state, use_ema=True)
        model = self.program.evaluation.model.module(weights, state.model_state, None)
        model.eval()
        return model

    def run(self) -> Summary:
        """Trains to the last step, or until a hook or `config.stop` ends the run; resumes from the newest checkpoint.

        Raises:
            Preempted, Interrupted: the run was asked to stop. The text says whether the state is saved.
            Diverged: the divergence policy ended the run.
            ReplicaError: replicas of the state differ.
            ConvoyError: storage or data failed.
        """
        for _ in self.train():
            pass
        return self.summary()

    def train(self) -> Generator[Boundary]:
        """Trains to the last step; yields each boundary after its events have run. Raises the errors of `run`.

        Closing the generator ends the run at the boundary that was yielded last. No new save is started.
        """
        with contextlib.ExitStack() as stack:
            for context in (self._preemption, self._watchdog, self.checkpoints, self._attempt):
                stack.enter_context(context)
            state, step = self._restore()
            programs = self._attempt.compile(self._finished(step))
            period = self._size.period(self.config.log.every)
            recorder = self._attempt.open_recorder(period, self._receive_row, self._on_phase, self._receive_values)
            self._recorder = self._phase.recorder = recorder
            self._stragglers = self._attempt.watch_stragglers(recorder, self._on_slowest) if programs else None
            if programs:
                recorder.note(step, {"compile_s": self.program.compile_s, **self._attempt.data_metrics})
                self._attempt.count_flops()
            stack.callback(lambda: self._profile.close(self._step))
            stack.enter_context(peer_failure.location_reported(lambda: self._step))
            evaluations = [each for each in self.evaluations if programs and each.is_due(self._size, step)]
            ahead = CompileAhead(evaluations, self.program.abstract_state, self.program.compiler, self._phase)
            events = self._events(recorder, stack.enter_context(ahead).wait)
            while True:
                recorder.resume(self._attempt.unfinished)
                schedule = Schedule(events, step)
                try:
                    with self._open_feed(step) as feed:
                        for boundary in self._train_steps(state, step, programs, feed, schedule, recorder):
                            for event in schedule.due(boundary):
                                with self._phase(event.phase):
                                    event.run(boundary)
                            yield boundary
                        with self._phase(SAVING):
                            self.checkpoints.finish()
                            if self._stop_reason and programs:
                                recorder.end_row()
                                write(self.directory, StopRecord.of(self._step, self._stop_reason, self.config))
                    return
                except Rollback:
                    pass  # restore after this block, because the frames of the exception reference the old state
                self._stop_reason = ""
                boundary = state = None  # free the old state first: two states may not fit in memory
                recorder.rollback()
                state, step = self._restore()

    def _restore(self) -> tuple[TrainState, int]:
        state, step = self._attempt.restore()
        self._divergence.resume(self._attempt.skipped)
        self._step = step
        return state, step

    def _finished(self, step: int) -> str:
        """Returns a sentence if the run, whose newest checkpoint is of this step, has no steps left; else ""."""
        fresh = "or start a new run with --fresh"
        if step == self.total_steps:
            return f"this run is finished; increase train.total to train longer, {fresh}"
        self._stop_reason = stopped_reason(self.directory, step, self.config) if self._resumed else ""
        if not self._stop_reason:
            return ""
        return (
            f"this run has ended early: {self._stop_reason}. To continue it, change the settings of stop or of the "
            f"hook, {fresh}"
        )

    @contextlib.contextmanager
    def _open_feed(self, step: int) -> Iterator[TrainFeed]:
        with self._attempt.open_feed(step, self.total_steps) as feed, self._watchdog.training(step):
            try:
                yield feed
            finally:
                self._report_reading(self._step, feed)

    def _events(self, recorder: Recorder, ready: Callable[[Evaluation], None]) -> list[Event]:
        """Returns all events, in the order in which they run at a boundary; `ready` as for `Evaluate`."""
        config, checkpoints, preemption, size = self.config, self.checkpoints, self._preemption, self._size
        results = Results(checkpoints, recorder, self.say, self._results)
        evaluations = [(evaluation, evaluation.period(size)) for evaluation in self.evaluations]
        hooks = hook_events(self, self._hooks, size, results, self._watched)
        measuring = {name: period for name in self._watched for e, period in evaluations if e.gives(name)}
        measuring |= hooks.measuring
        selecting = [measuring[config.checkpoint.best]] if config.checkpoint.best else []
        save = Save(
            checkpoints, self.directory, self._divergence, recorder, preemption, selecting, self.total_steps, self.say
        )
        read_batch = functools.partial(self._attempt.read_batch, total_steps=self.total_steps)
        divergence = DivergenceCheck(
            self._divergence, save, recorder, self.program, checkpoints, self._phase, read_batch
        )
        evaluate = Evaluate(evaluations, results, self._watched, preemption, self._watchdog.heartbeat, self.say, ready)
        replicas, every = ReplicaCheck(self.program.abstract_state.to_tree()), config.resilience.replica_check
        checks = [CheckReplicas(replicas, size.period(every))] if every and replicas.has_copies else []
        stops = [EarlyStop(config.stop, measuring[config.stop.metric], checkpoints)] if config.stop.metric else []
        prepare = PrepareSaves(checkpoints.prepare, self._step)
        return [prepare, divergence, *checks, save, evaluate, *hooks.events, *stops, Profile(self._profile)]

    def _train_steps(
        self,
        state: TrainState,
        step: int,
        programs: Mapping[int, CompiledSteps],
        feed: TrainFeed,
        schedule: Schedule,
        recorder: Recorder,
    ) -> Iterator[Boundary]:
        """Yields a boundary whenever an event is due, and dispatches the steps in between without waiting for them.

        `programs` maps a number of steps to the program that runs them in one dispatch.
        """
        stragglers = self._stragglers
        k, first, divergence = self.config.train.steps_per_dispatch, step, self._divergence
        last = self.total_steps if programs else step  # a finished run has no programs
        ended = False  # whether an event has ended the run at this step
        no_skips = {count: self.program.skip_mask((False,) * count) for count in programs}
        step_counter, poll_at = verdict.step_counter(), 0.0  # the launcher reads the counter after the process ends
        recorder.phase(TRAINING.name)
        self.directory.stopwatch.begin(step)
        self._profile.begin_attempt(step)
        if stragglers is not None:
            stragglers.begin(step)
        while True:
            self._step = step_counter[0] = step
            self._poll(step, feed)
            self._preemption.has_steps_to_save = step > first
            stopping = self._preemption.requested()
            if stopping or divergence.pending:
                schedule.bring_forward(step, DivergenceCheck, Save)
            is_last = ended or step == last
            boundary = Boundary(step, state, feed.position, step == first, is_last, stopping, ended=ended)
            yield boundary
            if boundary.interrupted:
                continue  # repeat the boundary; now `requested` is true, so the run saves and stops
            if boundary.last:
                return
            if boundary.stop:
                self._stop_reason, ended = boundary.stop, True
                self.say(f"step {step}: the run ends: {boundary.stop}")
                schedule.only(step, DivergenceCheck, CheckReplicas, Save, Evaluate, CallHook, HookResults)
                continue
            calls = self._profile.marked(programs, step)
            next_event, dispatch_end = schedule.advance(step, last)
            if stragglers is not None:
                stragglers.resume()  # events are not part of the work for a dispatch
            while True:
                count = k if step + k <= dispatch_end and (k == 1 or feed.same_shape(k)) else 1
                if (batches := self._preemption.unless_stopped(feed.next, count)) is None:
                    feed.seek(step)  # the run stops; a resume reads the discarded batches again
                    break
                self._watchdog.dispatched = step + count
                skips = no_skips[count]
                if divergence.skipped:
                    skips = self.program.skip_mask(divergence.skip_mask(step, count))
                if stragglers is not None:
                    stragglers.before_dispatch(step, count, feed.wait_s, feed.made_s, recorder.latest_arrival)
                state, metrics = calls[count](state, batches, skips)
                if stragglers is not None:
                    stragglers.resume()
                recorder.push(step, metrics, feed.wait_s, feed.times)
                step += count
                self._step = step_counter[0] = step
                if step >= next_event or divergence.pending:
                    break
                if time.monotonic() >= poll_at:
                    self._poll(step, feed)
                    poll_at = time.monotonic() + POLL_S

    def _poll(self, step: int, feed: TrainFeed) -> None:
        """Updates the stopwatch, and polls the lease and finished saves.

        Called at each boundary, and between boundaries about every POLL_S seconds.
        """
        self._report_reading(step, feed)
        self.directory.lease.check()
        if self._stragglers is not None:
            self._stragglers.report(step)
        if self.checkpoints.has_events:
            with self._phase(SAVING):
                self.checkpoints.poll()

    def _report_reading(self, step: int, feed: TrainFeed) -> None:
        self._readers = feed.readers
        self.directory.stopwatch.reached(step, feed.wait_s, dict(zip(STAGES, feed.times, strict=True)), feed.readers)

    def _receive_row(self, row: dict[str, float]) -> None:
        """Receives a row of training metrics, in the writer thread."""
        self._row = metrics_of(row)
        self._on_row(row)

    def _receive_values(self, first: int, values: np.ndarray) -> None:
        """Receives the metrics of the steps from `first` on: totals and weights `[steps, names, 2]`."""
        self._watchdog.arrived = first + len(values)
        self._divergence.add_results(first, values)
        self._zero_weights.add_results(first, values)

    def summary(self) -> Summary:
        """Returns the summary of the run so far."""
        best = self.checkpoints.retention.best()
        rates = self._recorder.rates() if self._recorder else {}
        return Summary(
            state="training",
            name=self.config.name,
            directory=self.directory,
            step=self._step,
            total_steps=self.total_steps,
            reason=f"stopped early: {self._stop_reason}" if self._stop_reason else "",
            metrics={**self._row, **self._results},
            best={} if best is None else {str(self.config.checkpoint.best): best},
            checkpoints=self.checkpoints.store.steps(),
            wall_s=time.monotonic() - self._started,
            compile_s=self.program.compile_s,
            rates=rates,
            data=Reading.of(rates, self._readers).sentence() if rates else "",
            scheduled=bool(followers(self.config)),
        )
