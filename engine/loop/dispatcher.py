"""Dispatches steps: reads batches, applies the skip mask, and calls the compiled program without waiting for it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

from engine.base.types import Json
from engine.cluster import verdict
from engine.compile.program import Program
from engine.compile.shapes import CompiledSteps
from engine.data.batch import Batch
from engine.data.feed import TrainFeed
from engine.data.stages import STAGES
from engine.loop.divergence import Divergence
from engine.loop.inputs import TrainInputs
from engine.loop.preemption import Preemption
from engine.loop.stragglers.base import Stragglers
from engine.loop.watchdog import Watchdog
from engine.observe.recorder import Recorder
from engine.run.goodput import Stopwatch
from engine.training.state import TrainState

if TYPE_CHECKING:
    from engine.observe.profiler import ProfileWindow

POLL_S = 0.05  # seconds between two polls of the lease and of finished saves, within a series of dispatches


@dataclass
class Dispatcher:
    """Dispatches the steps of an attempt. It owns the compiled programs, the feed and the skip masks."""

    program: Program
    programs: Mapping[int, CompiledSteps]
    """Number of steps -> the program that runs them in one dispatch; empty if the run is finished."""
    inputs: TrainInputs
    divergence: Divergence
    preemption: Preemption
    watchdog: Watchdog
    profile: "ProfileWindow | None"
    """None if the run is not profiled."""
    stragglers: Stragglers
    recorder: Recorder
    stopwatch: Stopwatch
    poll: Callable[[], None]
    """Called between dispatches about every POLL_S seconds."""
    step: int = 0
    """Number of dispatched steps."""
    readers: int = 1
    """Number of threads or worker processes that read."""
    feed: TrainFeed = field(init=False)
    """The batches, while `open` is open."""

    def __post_init__(self):
        self._k, self._poll_at = max(self.programs, default=1), 0.0
        self._no_skips = {count: self.program.skip_mask((False,) * count) for count in self.programs}
        self._counter = verdict.step_counter()  # the launcher reads it after the process ends

    @contextlib.contextmanager
    def open(self, step: int, position: Mapping[str, Any]) -> Iterator[None]:
        """Opens the feed at a step; arguments as for `TrainInputs.open`."""
        with self.inputs.open(step, position) as self.feed, self.watchdog.training(step):
            self._set_step(step)
            self.stopwatch.begin(step)
            if self.profile is not None:
                self.profile.begin_attempt(step)
            self.stragglers.begin(step)
            try:
                yield
            finally:
                self.report_reading()

    def report_reading(self) -> None:
        """Reports to the stopwatch the present step, and how the feed has read so far."""
        self.readers = self.feed.readers
        times: dict[str, float] = dict(zip(STAGES, self.feed.times, strict=True))
        self.stopwatch.reached(self.step, self.feed.wait_s, times, self.readers)

    @property
    def position(self) -> Mapping[str, Json]:
        """Position in the data: the next batch and the next example."""
        return self.feed.position

    def run(self, state: TrainState, next_event: float, dispatch_end: float) -> TrainState:
        """Dispatches at least one step, and returns the state after all of them, which may still be computed.

        It ends at the next event, at a request to stop, and if a result shows a bad batch.

        Args:
            state: the present state; its arrays are donated.
            next_event: step of the next event.
            dispatch_end: step at which a dispatch of several steps has to end.
        """
        calls = self.programs if self.profile is None else self.profile.marked(self.programs, self.step)
        self.stragglers.resume()  # events are not part of the work for a dispatch
        while True:
            count = self._count(dispatch_end)
            batches = self.preemption.unless_stopped(self.feed.next, count)
            if batches is None:
                self.feed.seek(self.step)  # the run stops; a resume reads the discarded batches again
                return state
            state, metrics = self._dispatch(calls[count], state, batches)
            self.recorder.push(self.step, metrics, self.feed.wait_s, self.feed.times)
            self._set_step(self.step + count)
            if self.step >= next_event or self.divergence.pending:
                return state
            if time.monotonic() >= self._poll_at:
                self.poll()
                self._poll_at = time.monotonic() + POLL_S

    def _count(self, dispatch_end: float) -> int:
        """Returns the number of steps of the next dispatch."""
        fits = self.step + self._k <= dispatch_end and (self._k == 1 or self.feed.same_shape(self._k))
        return self._k if fits else 1

    def _dispatch(
        self, call: Callable[..., tuple[TrainState, jax.Array]], state: TrainState, batches: tuple[Batch, ...]
    ) -> tuple[TrainState, jax.Array]:
        step, count = self.step, len(batches)
        self.watchdog.dispatched = step + count
        skips = self._no_skips[count]
        if self.divergence.skipped:
            skips = self.program.skip_mask(self.divergence.skip_mask(step, count))
        self.stragglers.before_dispatch(step, count, self.feed, self.recorder.latest_arrival)
        result = call(state, batches, skips)
        self.stragglers.resume()
        return result

    def _set_step(self, step: int) -> None:
        self.step = self._counter[0] = step
