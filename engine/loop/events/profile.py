"""The trace of the profiler."""

from dataclasses import dataclass

from engine.loop.events.event import Boundary
from engine.loop.phases import PROFILING
from engine.observe.profiler import ProfileWindow


@dataclass(eq=False)
class ProfileEvent:
    """Starts and ends the trace of the profiler."""

    window: ProfileWindow
    phase = PROFILING
    ends_dispatch = True
    runs_at_end = False

    def next_step(self, after: int) -> float:
        return self.window.next_step(after)

    def run(self, boundary: Boundary) -> None:
        if not boundary.last:
            self.window.at(boundary.step, boundary.state)
