"""The training loop: trains a Task on a mesh of devices and writes checkpoints and metrics to a run directory.

`Trainer.train` is a generator of boundaries. At a boundary, the events that are due run in the order of `_events`. Then
the dispatcher dispatches steps until the next event is due.
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
from engine.checkpoint.store import CheckpointStore
from engine.cluster import group, peer_failure
from engine.compile.build import build_program, check_unrolled, open_compiler
from engine.compile.memory_check import check_memory, training_batches
from engine.compile.shapes import CompiledSteps
from engine.config.schedules import followers
from engine.config.schema import Config
from engine.config.target import INSTANCE, user_targets
from engine.config.text import field_texts, to_text
from engine.data.feed import Batching
from engine.data.source import Source, example_spec
from engine.data.source_adapter import indexed
from engine.loop.dispatcher import Dispatcher
from engine.loop.divergence import Divergence
from engine.loop.events.divergence import DivergenceCheck, Rollback
from engine.loop.events.event import Boundary, Event, EventSchedule
from engine.loop.events.save import Prepare, Save
from engine.loop.hooks import Hook
from engine.loop.inputs import TrainInputs
from engine.loop.observers import LateObserver
from engine.loop.phases import COMPILING, IDLE, SAVING, TRAINING, Phases
from engine.loop.preemption import Preemption
from engine.loop.recording import check_metric_names, open_recorder
from engine.loop.start import Start, compile_steps, record_inputs, restore, say_notes
from engine.loop.stragglers.base import Stragglers
from engine.loop.watchdog import Watchdog
from engine.observe.recorder import Receivers, Recorder
from engine.observe.summary import Summary
from engine.observe.throughput import FlopsCount, Reading
from engine.observe.writer import metrics_of
from engine.observe.zero_weights import ZeroWeights
from engine.run.directory import RunDirectory
from engine.run.log import logger
from engine.training.state import TrainState, evaluation_params
from engine.training.task import Task


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
        on_slowest: called in the writer thread with a sentence about the slowest process, if that changes; "" for none.
        observers: dotted paths of functions that make observers of the run (`loop/observers.py`).
        roles: as for `build_program`.
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
        hooks: Mapping[str, "Hook[Trainer]"],
        on_row: Callable[[dict[str, float]], None],
        on_message: Callable[[str], None],
        on_phase: Callable[[str], None] = lambda phase: None,
        on_slowest: Callable[[str], None] = lambda text: None,
        observers: Sequence[str] = (),
        roles: str | None = None,
    ):
        self.config, self.directory, self._hooks = config, directory, hooks
        self._on_row, self.say, self._on_phase = on_row, on_message, on_phase
        self._on_slowest, self._observers = on_slowest, observers
        source = indexed(source, "source")
        evaluated = {name: indexed(each, f"evaluation_sources[{name!r}]") for name, each in evaluation_sources.items()}
        text = to_text(config)
        newest = group.run_on_primary(CheckpointStore(directory.checkpoints).latest, "the newest checkpoint")
        self._first_step, self._resumed = newest or 0, newest is not None
        self.program, self.total_steps = build_program(task, mesh, source, config, roles, self._first_step)
        self.program.compiler = open_compiler(config.cache.programs, text, self.say)
        check_metric_names(self.program, config.evaluations, hooks)
        self._size = size = RunSize(config.train.global_batch_size, len(source), self.total_steps)
        check_unrolled(self.program, config.train)
        batches = training_batches(config.train, config.data, example_spec(source), self.total_steps)
        warnings = check_memory(batches, mesh, self.program.abstract_state)
        self._measurements = None
        if config.evaluations or hooks or config.stop.metric or config.checkpoint.best:
            from engine.loop.measurements import Measurements

            calls = {name: functools.partial(hook.run, self) for name, hook in hooks.items()}
            self._measurements = Measurements(config, evaluated, calls, self.program, size)
            warnings += self._measurements.warnings
        self.evaluations = [] if self._measurements is None else self._measurements.evaluations
        directory.messages += [f"warning: {text}" for text in warnings]
        self.checkpoints = build_checkpointer(config.checkpoint, text, directory, size, self.say)
        k, sharding = config.train.steps_per_dispatch, self.program.spec.batch_sharding
        batching = Batching(size.batch_size, config.train.seed, sharding, self.total_steps)
        self.inputs = TrainInputs(source, config.data, batching, k, directory, self.say, config.log.examples)
        self.inputs.watched += evaluated.values()
        self._divergence = Divergence(config.resilience.divergence, self.program.metric_names, self.say)
        self._zero_weights = ZeroWeights(math.ceil(len(source) / size.batch_size), self.say)
        hang_s, timeout_s = config.resilience.hang.seconds, config.checkpoint.timeout.seconds
        self._watchdog = Watchdog(hang_s, timeout_s, directory.stacks, directory.attempt, k)
        self._preemption = Preemption(lambda: self._phase.name)
        self._phase = Phases(directory.stopwatch, self._watchdog)
        self._recorder: Recorder | None = None
        self._flops: FlopsCount | None = None
        self._dispatcher: Dispatcher | None = None
        self._row: dict[str, float] = {}  # training metrics of the latest logging interval
        self._results: dict[str, float] = {}  # latest results of evaluations and hooks; `Results` updates them
        self._stop_reason = ""  # why the run ends or has ended before its last step
        self._started = time.monotonic()

    @property
    def step(self) -> int:
        """Number of dispatched steps; before training, the step of the newest checkpoint, or 0."""
        return self._first_step if self._dispatcher is None else self._dispatcher.step

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
            Rebuild: groups are frozen until this step, so the trainer has to be built again.
            ReplicaError: replicas of the state differ.
            ConvoyError: storage or data failed.
        """
        for _ in self.train():
            pass
        return self.summary()

    def train(self) -> Generator[Boundary]:
        """Trains to the last step; yields each boundary after its events have run. Raises the errors of `run`.

        The caller may take any time between two boundaries; it counts as time of hooks. Closing the generator ends the
        run at the boundary that was yielded last. No new save is started.
        """
        with contextlib.ExitStack() as stack:
            for context in (self._preemption, self._watchdog, self.checkpoints, self.inputs):
                stack.enter_context(context)
            start: Start | None = self._restore()
            programs = self._compile(start.step)
            recorder = stack.enter_context(self._open_recorder(programs, start.step))
            dispatcher = self._dispatcher = stack.enter_context(self._open_dispatcher(programs, recorder, start.step))
            if self._measurements is not None and programs:
                stack.enter_context(self._measurements.compiled_ahead(start.step, self._phase))
            events = self._events(dispatcher)
            while True:
                try:
                    yield from self._train_from(start, dispatcher, events)
                    return
                except Rollback:
                    pass  # restore after this block, because the frames of the exception reference the old state
                start = None  # free the old state first: two states may not fit in memory
                self._stop_reason = ""
                recorder.rollback()
                start = self._restore()

    def _train_from(self, start: Start, dispatcher: Dispatcher, events: Sequence[Event]) -> Generator[Boundary]:
        """Trains from a restored state to the last step. Raises Rollback if the run has to restore another one."""
        dispatcher.recorder.resume(start.row)
        schedule = EventSchedule(events, start.step)
        with dispatcher.open(start.step, start.position):
            dispatcher.recorder.phase(TRAINING.name)
            for boundary in self._train_steps(start.state, dispatcher, schedule):
                for event in schedule.due(boundary):
                    with self._phase(event.phase):
                        event.run(boundary)
                with self._phase(IDLE):  # the caller may leave the generator for as long as it likes
                    yield boundary
            with self._phase(SAVING):
                self.checkpoints.finish()
                if self._measurements is not None and self._stop_reason and dispatcher.programs:
                    dispatcher.recorder.end_row()
                    self._measurements.record_stop(self.directory, self.step, self._stop_reason)

    def _train_steps(self, state: TrainState, dispatcher: Dispatcher, schedule: EventSchedule) -> Iterator[Boundary]:
        """Yields a boundary whenever an event is due, and dispatches the steps in between without waiting for them."""
        first, ended, until = dispatcher.step, False, self.program.spec.until
        last = self.total_steps if dispatcher.programs else first  # a finished run has no programs
        while True:
            step = dispatcher.step
            self._poll()
            self._preemption.has_steps_to_save = step > first
            stopping = self._preemption.requested() or step == until
            if stopping or self._divergence.pending:
                schedule.bring_forward(step, DivergenceCheck, Save)
            is_last = ended or step == last
            boundary = Boundary(step, state, dispatcher.position, step == first, is_last, stopping, ended=ended)
            yield boundary
            if boundary.interrupted:
                continue  # repeat the boundary; now `requested` is true, so the run saves and stops
            if boundary.last:
                return
            if boundary.stop:
                ended, self._stop_reason = True, boundary.stop
                dispatcher.recorder.call(functools.partial(self.say, f"step {step}: the run ends: {boundary.stop}"))
                schedule.end_at(step)
                continue
            state = dispatcher.run(state, *schedule.advance(step, min(last, until)))

    def _restore(self) -> Start:
        start = restore(self.checkpoints.store, self.program, self.config.init, self._phase, self.say)
        if not start.position and self.directory.metrics.exists():
            self.say("the earlier attempt has completed no checkpoint; starting again from step 0")
        record_inputs(start, self.directory)
        self._divergence.resume(start.skipped)
        return start

    def _compile(self, step: int) -> Mapping[int, CompiledSteps]:
        """Returns the compiled programs by their number of steps; none if the run has no steps left."""
        say_notes(self.program, self.say)
        if self._resumed:
            from engine.loop.stopping import ended

            self._stop_reason, sentence = ended(self.directory, step, self.total_steps, field_texts(self.config))
            if sentence:
                self.say(sentence)
                return {}
        with self._phase(COMPILING):
            if (ragged := self.inputs.ragged) is not None:
                self.say(f"data: {ragged}")
                if len(ragged.shares) > 1:
                    self.program.shape_shares = ragged.shares
                    self.say(f"compiling a program for each of {len(ragged.shares)} lengths")
            return compile_steps(self.program, self.config.train.steps_per_dispatch, self.say)

    @contextlib.contextmanager
    def _open_recorder(self, programs: Mapping[int, CompiledSteps], step: int) -> Iterator[Recorder]:
        """Opens the metric files; yields the recorder that writes rows to them."""
        period = self._size.period(self.config.log.every)
        more = self.inputs.drawn_shares if group.is_primary() else lambda first, last: {}
        receivers = Receivers(self._receive_row, self._on_phase, self._receive_values, more)
        self._flops = flops = FlopsCount(lambda: self.program.flops_per_step, self.say)
        observers = [LateObserver(path, self) for path in self._observers if group.is_primary()]
        with open_recorder(
            self.program, self.config, self.directory, period, receivers, observers, flops
        ) as self._recorder:
            self._phase.recorder = self._recorder
            if programs:
                padding = {} if (ragged := self.inputs.ragged) is None else ragged.metrics
                self._recorder.note(step, {"compile_s": self.program.compile_s, **padding})
            yield self._recorder

    @contextlib.contextmanager
    def _open_dispatcher(
        self, programs: Mapping[int, CompiledSteps], recorder: Recorder, step: int
    ) -> Iterator[Dispatcher]:
        """Yields the dispatcher of the attempt; reports errors with its step, and ends a trace with it."""
        stragglers = Stragglers()
        if group.count() > 1 and programs:
            from engine.loop.stragglers.monitor import StragglerMonitor

            with self._phase(COMPILING):
                stragglers = StragglerMonitor(
                    self.program.mesh.local_devices,
                    drain=recorder.drain,
                    hooks_s=lambda: self._phase.hooks_s,
                    say=self.say,
                    on_slowest=lambda text: recorder.call(lambda: self._on_slowest(text)),
                    stopwatch=self.directory.stopwatch,
                )
        with stragglers, contextlib.ExitStack() as stack:
            profile, section = None, self.config.profile
            if section.start is not None:
                from engine.observe.profiler import ProfileWindow

                profile = ProfileWindow(section.start, section.steps, self.directory.traces, self.say)
                stack.callback(lambda window=profile: window.close(self.step))
            stack.enter_context(peer_failure.location_reported(lambda: self.step))
            yield Dispatcher(
                program=self.program,
                programs=programs,
                inputs=self.inputs,
                divergence=self._divergence,
                preemption=self._preemption,
                watchdog=self._watchdog,
                profile=profile,
                stragglers=stragglers,
                recorder=recorder,
                stopwatch=self.directory.stopwatch,
                poll=self._poll,
                step=step,
            )

    def _late_starts(self) -> list[Callable[[], None]]:
        """Returns the starts of the threads that trace, and would delay the first step."""
        found = [] if self._flops is None else [self._flops.start]
        return found if self._measurements is None else [*found, self._measurements.compile_ahead]

    def _events(self, dispatcher: Dispatcher) -> list[Event]:
        """Returns all events, in the order in which they run at a boundary."""
        recorder = dispatcher.recorder
        checkpoints, preemption, measurements = self.checkpoints, self._preemption, self._measurements
        selecting = [] if measurements is None else measurements.selecting
        report = self.say if self.config.log.verbose else logger.info  # the log has each save
        rest = self.total_steps, report, self.program.spec.until
        save = Save(checkpoints, self.directory, self._divergence, recorder, preemption, selecting, *rest)
        divergence = DivergenceCheck(
            self._divergence, save, recorder, self.program, checkpoints, self._phase, self.inputs.read_again
        )
        checks: list[Event] = []
        if (every := self.config.resilience.replica_check) and self.program.mesh.size > 1:
            from engine.loop.events.replica_check import replica_checks

            checks += replica_checks(self.program.abstract_state.to_tree(), self._size.period(every))
        if every := self.config.resilience.gradient_check:
            from engine.loop.events.gradient_check import gradient_checks

            period = self._size.period(every)
            checks += gradient_checks(self.program, period, self.inputs.read_again, recorder, self.say)
        measured: list[Event] = []
        if measurements is not None:
            heartbeat = self._watchdog.heartbeat
            measured = measurements.events(checkpoints, recorder, preemption, heartbeat, self.say, self._results)
        profile: list[Event] = []
        if dispatcher.profile is not None:
            from engine.loop.events.profile import ProfileEvent

            profile = [ProfileEvent(dispatcher.profile)]
        prepare = Prepare(checkpoints.prepare, self.step, self._late_starts(), self.program.spec.constant)
        return [prepare, divergence, *checks, save, *measured, *profile]

    def _poll(self) -> None:
        """Updates the stopwatch; polls the lease, files and saves: at each boundary, and every POLL_S or so."""
        assert self._dispatcher is not None
        self._dispatcher.report_reading()
        self.directory.lease.check()
        self.inputs.check()
        self._dispatcher.stragglers.report(self.step)
        if self.checkpoints.has_events:
            with self._phase(SAVING):
                self.checkpoints.poll()

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
        readers = self._dispatcher.readers if self._dispatcher else 1
        return Summary(
            state="training",
            name=self.config.name,
            directory=self.directory,
            step=self.step,
            total_steps=self.total_steps,
            reason=f"stopped early: {self._stop_reason}" if self._stop_reason else "",
            metrics={**self._row, **self._results},
            best={} if best is None else {str(self.config.checkpoint.best): best},
            checkpoints=self.checkpoints.store.steps(),
            wall_s=max(0.0, time.monotonic() - self._started),
            compile_s=self.program.compile_s,
            rates=rates,
            data=Reading.of(rates, readers).sentence() if rates else "",
            verbose=self.config.log.verbose,
            scheduled=bool(followers(self.config.optimizer)),
            objects=[path for path, section in user_targets(self.config).items() if section.target == INSTANCE],
        )
