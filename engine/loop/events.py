"""Events: everything that a run does between two dispatches, with one protocol.

To add a periodic feature, write a class with the members of `Event` and add a line to `Trainer._events`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.base import formatting
from engine.base.duration import Period
from engine.base.types import Json, PyTree
from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.store import StorageError
from engine.cluster import group
from engine.compile.program import Program
from engine.config.schema import Stop as StopConfig
from engine.data.batch import Batch
from engine.data.streams.marks import gather_marks
from engine.loop.divergence import Divergence, list_names
from engine.loop.evaluation import Evaluation, check_measured
from engine.loop.phases import EVALUATING, PREPARING, PROFILING, SAVING, TRAINING, Phase, Phases
from engine.loop.preemption import Interrupted, Preempted, Preemption
from engine.loop.replica_check import ReplicaCheck
from engine.loop.stopping import reason_to_stop
from engine.metrics.results import MAX_NUMBERS, Result, Table, scalars, table_text, too_large
from engine.observe.profiler import ProfileWindow
from engine.observe.recorder import Recorder
from engine.run.directory import RunDirectory
from engine.training.state import TrainState

EXPLAIN_S = 60.0  # until all processes must have read a batch again


@dataclass
class Boundary:
    """A point between two dispatches. All steps before `step` are complete or in flight."""

    step: int
    state: TrainState
    position: Mapping[str, Json]
    """Position in the data: the next batch and the next example."""
    first: bool
    """Whether the run starts or resumes here."""
    last: bool
    """Whether `step` is the last step of the run."""
    stopping: bool
    """Whether the run was asked to stop: it saves and ends at this boundary."""
    interrupted: bool = False
    """Set by an event that aborted because the run was asked to stop; the boundary is repeated with `stopping`."""
    stop: str = ""
    """Set by an event that ends the run before its last step: why. The boundary is repeated with `ended` and `last`."""
    ended: bool = False
    """Whether the run ends at this step because of `stop`."""


class Event(Protocol):
    """Something that happens at certain steps of a run."""

    @property
    def phase(self) -> Phase:
        """Phase of the main thread while the event runs."""
        ...

    @property
    def ends_dispatch(self) -> bool:
        """Whether a dispatch of several steps must end at its step. False for an event that depends on a clock."""
        ...

    def next_step(self, after: int) -> float:
        """Returns the first step > `after` at which the event is due; math.inf for never."""
        ...

    def run(self, boundary: Boundary) -> None:
        """Runs the event. Every process of a run calls it at the same steps."""
        ...


class Schedule:
    """The next step of each event.

    Args:
        events: the events, in the order in which they run at a step.
        step: step of the first boundary.
    """

    def __init__(self, events: Sequence[Event], step: int):
        self._next = {event: event.next_step(step - 1) for event in events}

    def due(self, boundary: Boundary) -> Iterator[Event]:
        """Yields the events that are due, in order, until one is interrupted."""
        for event, step in self._next.items():
            if step <= boundary.step and not boundary.interrupted:
                yield event

    def bring_forward(self, step: int, *kinds: type) -> None:
        """Makes the events of these classes due at a step."""
        self._next |= {event: step for event in self._next if isinstance(event, kinds)}

    def only(self, step: int, *kinds: type) -> None:
        """Makes the events of these classes due at a step, and no others."""
        self._next = {event: step if isinstance(event, kinds) else math.inf for event in self._next}

    def advance(self, step: int, total_steps: int) -> tuple[float, float]:
        """Returns the next step > `step` with an event, and the next that ends a dispatch; at most `total_steps`."""
        self._next = {event: event.next_step(step) for event in self._next}
        ends = [at for event, at in self._next.items() if event.ends_dispatch]
        return min([total_steps, *self._next.values()]), min([total_steps, *ends])


class Rollback(Exception):
    """Raised to make the trainer restore the newest checkpoint and continue from there."""


@dataclass(eq=False)
class Save:
    """Saves by policy, and always at the last step, on a request to stop, and with an evaluation that selects the best.

    When the run was asked to stop, it raises Interrupted or Preempted after the save.
    """

    checkpoints: Checkpointer
    directory: RunDirectory
    divergence: Divergence
    recorder: Recorder
    preemption: Preemption
    selecting: Sequence[Period]
    """Periods of the evaluations that select the best checkpoint."""
    total_steps: int
    say: Callable[[str], None]
    phase = SAVING

    @property
    def ends_dispatch(self) -> bool:
        return not self.checkpoints.policy.is_clock

    def next_step(self, after: int) -> float:
        selecting = [period.next_after(after) for period in self.selecting]
        return min([self.checkpoints.policy.next_step(after), *selecting])

    def is_due(self, boundary: Boundary) -> bool:
        """Whether this boundary is saved."""
        return self._is_forced(boundary) or self.checkpoints.policy.due(boundary.step)

    def _is_forced(self, boundary: Boundary) -> bool:
        wanted = boundary.last or any(period.due(boundary.step) for period in self.selecting)
        return boundary.stopping or boundary.ended or (boundary.step > 0 and wanted)

    def run(self, boundary: Boundary) -> None:
        if not self.divergence.pending and self.is_due(boundary):
            row = self.recorder.unfinished()
            position = {**gather_marks(boundary.position), "skipped": sorted(self.divergence.skipped), "row": row}
            force = self._is_forced(boundary)
            if self.checkpoints.maybe_save(boundary.step, boundary.state.to_tree(), position, force):
                self.say(f"saving checkpoint of step {boundary.step}")
                self.directory.stopwatch.flush()
                self.recorder.saved()
        if boundary.stopping:
            raise self._stopped(boundary.step)

    def _stopped(self, step: int) -> Interrupted | Preempted:
        kind = Interrupted if self.preemption.interrupted else Preempted
        reached = f"step {step} of {self.total_steps}"
        try:
            self.checkpoints.finish()
        except StorageError as error:
            return kind(f"asked to stop at {reached}. {error}")
        if not self.directory.kept:
            return kind(f"asked to stop at {reached}. This run keeps no files; to keep them, add --workdir=DIR.")
        return kind(f"asked to stop; the state of {reached} is saved in {self.directory}.")


@dataclass(eq=False)
class DivergenceCheck:
    """Applies the divergence policy to bad batches, and checks that a state is finite before it is saved."""

    policy: Divergence
    save: Save
    recorder: Recorder
    program: Program
    checkpoints: Checkpointer
    phases: Phases
    read_batch: Callable[[int], Batch]
    """Returns a batch by its number, once more."""
    phase = TRAINING  # it waits for steps, so the timeout of a step applies
    ends_dispatch = False

    def next_step(self, after: int) -> float:
        return self.save.next_step(after)

    def run(self, boundary: Boundary) -> None:
        """
        Raises:
            Rollback: the run has to continue from its newest checkpoint.
            Diverged: the policy ends the run.
        """
        saving = self.save.is_due(boundary)
        if saving or self.policy.pending:
            self.recorder.settle()
        broken = self.program.not_finite(boundary.state) if saving else []
        if not (broken or self.policy.pending):
            return
        with self.phases(SAVING):
            self.checkpoints.settle()
        saved = group.run_on_primary(self.checkpoints.store.steps, "the checkpoints")
        ending = boundary.stopping or boundary.last
        if self.policy.must_roll_back(
            boundary.step, saved, ending, broken, lambda batch: self._explain(boundary.state, batch)
        ):
            raise Rollback

    def _explain(self, state: TrainState, batch: int) -> str:
        """Returns a sentence that names arrays of the state, or gradients of a batch, that are not finite.

        The gradient is that of the present state, which good steps may have changed since. Every process calls it.
        """
        with self.phases(PREPARING):
            if broken := self.program.not_finite(state):
                return f"Not finite in the state: {list_names(broken)}. "
            try:
                examples = self.read_batch(batch)
            except Exception:  # the run ends with the reason that is known
                examples = None
            ready = group.decide(examples is not None, _all_ready, "the batch of a bad step", EXPLAIN_S)
            if not ready or examples is None:
                return ""
            names = self.program.not_finite_gradients(state, examples, batch)
        if len(names) == len(self.program.spec.model.trained) > 1:
            return "No gradient is finite. "
        return f"Gradients that are not finite: {list_names(names)}. " if names else ""


def _all_ready(values: Mapping[int, bool], missing: Sequence[int]) -> bool:
    return not missing and all(values.values())


@dataclass(eq=False)
class PrepareSaves:
    """Compiles the computations of a save after the first step is dispatched, so that they do not delay it."""

    prepare: Callable[[PyTree], None]
    first_step: int
    done: bool = False
    phase = PREPARING
    ends_dispatch = False

    def next_step(self, after: int) -> float:
        return math.inf if self.done else max(self.first_step, after) + 1

    def run(self, boundary: Boundary) -> None:
        self.done = True
        self.prepare(boundary.state.to_tree())


@dataclass(eq=False)
class Results:
    """The results of evaluations and hooks: prints them, writes them to the metric files and stores them by step."""

    checkpoints: Checkpointer
    recorder: Recorder
    say: Callable[[str], None]
    latest: dict[str, float]
    """Latest value of each metric that is a number."""
    warned: set[str] = field(default_factory=set)
    """Results that are too large for metrics.jsonl, as reported."""

    def add(self, step: int, results: Mapping[str, Result]) -> None:
        """Adds the results of a step, by full name. Every process adds the same."""
        values = scalars(results)
        self.latest |= values
        self.recorder.note(step, results)
        self.checkpoints.record(step, values)
        text = formatting.table(values)
        self.say(f"step {step}:{text if text.startswith('\n') else f' {text}'}")
        for name, result in results.items():
            if isinstance(result, Table):
                self.say(f"step {step}: {name}:{table_text(result)}")
        if large := [name for name in too_large(results) if name not in self.warned]:
            self.warned.update(large)
            self.say(f"warning: {list_names(large)}: above {MAX_NUMBERS} numbers or rows, so not in metrics.jsonl")


@dataclass(eq=False)
class Evaluate:
    """Runs the named evaluations that are due and records their results."""

    evaluations: Sequence[tuple[Evaluation, Period]]
    results: Results
    watched: Mapping[str, str]
    """Metric that the config names -> its field, such as "checkpoint.best"."""
    preemption: Preemption
    heartbeat: Callable[[], None]
    say: Callable[[str], None]
    ready: Callable[[Evaluation], None] = lambda evaluation: None
    """Waits until the programs of an evaluation are compiled."""
    phase = EVALUATING
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return min((period.next_after(after) for _, period in self.evaluations), default=math.inf)

    def run(self, boundary: Boundary) -> None:
        step = boundary.step
        new: dict[str, Result] = {}
        # An earlier attempt may have ended right after this evaluation.
        known = self.results.checkpoints.results(step) if boundary.first else {}
        for evaluation, period in self.evaluations:
            due = period.due(step)
            if not (period.at_end and not due if boundary.ended else due):  # an early end runs those that were not due
                continue
            if evaluation.is_known(known):
                self.results.latest |= known
                continue
            self.ready(evaluation)
            if (found := evaluation.run(boundary.state, self.preemption, self.heartbeat, step)) is None:
                boundary.interrupted = True
                return
            check_measured(self.watched, "evaluation", evaluation.name, scalars(found))
            new |= found
            if evaluation.unweighted:
                names = list_names(evaluation.unweighted)
                self.say(f"warning: step {step}: every weight of {names} is 0, so there is no value (NaN)")
            if (error := evaluation.figure_error) is not None:
                self.say(f"warning: step {step}: figures of {evaluation.name} are missing: {error}")
        if new:
            self.results.add(step, new)


@dataclass(eq=False)
class EarlyStop:
    """Ends the run when a condition of the config section `stop` holds."""

    config: StopConfig
    measured: Period
    """The steps at which an evaluation or a hook measures the metric."""
    checkpoints: Checkpointer
    phase = TRAINING
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return self.measured.next_after(after)

    def run(self, boundary: Boundary) -> None:
        history = self.checkpoints.retention.history(self.config.metric or "", boundary.step)
        if boundary.step in history and not boundary.stop:
            # The primary decides: hosts with different processors may compute different last bits of the metric.
            boundary.stop = group.broadcast(reason_to_stop(self.config, history), "early stopping")


@dataclass(eq=False)
class CheckReplicas:
    """Compares the replicas of the state on different devices."""

    check: ReplicaCheck
    period: Period
    phase = TRAINING
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return self.period.next_after(after)

    def run(self, boundary: Boundary) -> None:
        self.check.run(boundary.step, boundary.state.to_tree())


@dataclass(eq=False)
class Profile:
    """Starts and ends the trace of the profiler."""

    window: ProfileWindow
    phase = PROFILING
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return self.window.next_step(after)

    def run(self, boundary: Boundary) -> None:
        if not boundary.last:
            self.window.at(boundary.step, boundary.state)
