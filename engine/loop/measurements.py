"""What measures the state at certain steps of a run: its evaluations and hooks, and early stopping by their metrics.

A run without evaluations and hooks does not import this module.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from engine.base.duration import Period, RunSize
from engine.checkpoint.checkpointer import Checkpointer
from engine.compile.program import Program
from engine.config.schema import Config
from engine.config.text import field_texts
from engine.data.source import BaseSource
from engine.loop.compile_ahead import CompileAhead
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import build_evaluations, check_watched
from engine.loop.events.early_stop import EarlyStop
from engine.loop.events.evaluate import Evaluate
from engine.loop.events.event import Event
from engine.loop.events.hook import hook_events
from engine.loop.events.results import Results
from engine.loop.hooks import hook_sections
from engine.loop.phases import Phases
from engine.loop.preemption import Preemption
from engine.loop.stopping import StopRecord, write
from engine.metrics.direction import known_mode
from engine.observe.recorder import Recorder
from engine.run.directory import RunDirectory
from engine.training.state import TrainState


class Measurements:
    """The evaluations and hooks of a run.

    Args:
        config: config of the run.
        sources: name of an evaluation -> its examples.
        calls: name of a hook -> the function that calls it with a state and the step.
        program: program of the run.
        size: sizes of the run.

    Raises:
        ConvoyError: an evaluation does not fit the Task or the devices.
        ConfigError: no evaluation has a metric that the config names.
    """

    def __init__(
        self,
        config: Config,
        sources: Mapping[str, BaseSource],
        calls: Mapping[str, Callable[[TrainState, int], object]],
        program: Program,
        size: RunSize,
    ):
        self._config, self._program, self._size = config, program, size
        named = {config.stop.metric: "stop.metric", config.checkpoint.best: "checkpoint.best"}
        self._watched = {metric: field for metric, field in named.items() if metric is not None}
        self.evaluations = build_evaluations(config.evaluations, sources, program.evaluation, size.batch_size)
        for evaluation in self.evaluations:
            evaluation.check_rows()
        check_watched(self._watched, self.evaluations, calls)
        self.warnings = [text for evaluation in self.evaluations for text in evaluation.warnings]
        self.warnings += _unknown_modes(config)
        self._evaluations = [(evaluation, evaluation.period(size)) for evaluation in self.evaluations]
        sections = hook_sections(config)
        self._calls = {name: (call, size.period(sections[name].every)) for name, call in calls.items()}
        self._ready: Callable[[Evaluator], None] = lambda evaluation: None
        self.compile_ahead: Callable[[], None] = lambda: None
        """Starts the thread that compiles evaluations."""

    def _period(self, metric: str) -> Period:
        """Returns the steps at which an evaluation or a hook measures a metric."""
        hook, _, _ = metric.partition("/")
        if hook in self._calls:
            return self._calls[hook][1]
        return next(period for evaluation, period in self._evaluations if evaluation.gives(metric))

    @property
    def selecting(self) -> list[Period]:
        """The steps at which the metric of `checkpoint.best` is measured; [] without one."""
        best = self._config.checkpoint.best
        return [self._period(best)] if best else []

    @contextlib.contextmanager
    def compiled_ahead(self, step: int, phase: Phases) -> Iterator[None]:
        """Lets `compile_ahead` compile the evaluations that are due at a step or later, while the block runs."""
        due = [evaluation for evaluation, _ in self._evaluations if evaluation.is_due(self._size, step)]
        with CompileAhead(due, self._program.abstract_state, self._program.compiler, phase) as ahead:
            self._ready, self.compile_ahead = ahead.wait, ahead.start
            yield

    def events(
        self,
        checkpoints: Checkpointer,
        recorder: Recorder,
        preemption: Preemption,
        heartbeat: Callable[[], None],
        say: Callable[[str], None],
        latest: dict[str, float],
    ) -> list[Event]:
        """Returns the events of the evaluations, of the hooks, and of early stopping, in this order.

        Args:
            checkpoints: store the results by step.
            recorder: writes the results to the metric files.
            preemption: interrupts an evaluation.
            heartbeat: called while an evaluation makes progress.
            say: called with sentences for the user.
            latest: receives the latest value of each metric that is a number.
        """
        config = self._config
        results = Results(checkpoints, recorder, say, latest, self._watched.keys(), config.log.verbose)
        evaluate = Evaluate(self._evaluations, results, self._watched, preemption, heartbeat, say, self._ready)
        hooks = hook_events(self._calls, results, self._watched, config.resilience.hang.seconds)
        stop = config.stop
        stops = [EarlyStop(stop, self._period(stop.metric), checkpoints)] if stop.metric else []
        return [evaluate, *hooks, *stops]

    def record_stop(self, directory: RunDirectory, step: int, reason: str) -> None:
        """Stores that a hook or the config section `stop` has ended the run at a step, and why."""
        write(directory, StopRecord.of(step, reason, field_texts(self._config)))


def _unknown_modes(config: Config) -> list[str]:
    """Returns a sentence for each metric that the config names, if neither a field nor its name says what is best."""
    fields = {
        "checkpoint.best_mode": (config.checkpoint.best, config.checkpoint.best_mode),
        "stop.mode": (config.stop.metric, config.stop.mode),
    }
    return [
        f"{field}: the name {metric!r} does not say whether a large or a small value is best, so the largest counts as "
        "best. Set it to max or min."
        for field, (metric, mode) in fields.items()
        if metric is not None and mode == "auto" and known_mode(metric) is None
    ]
