"""The event of the profiler: it starts and ends a trace at the steps of its window."""

from typing import Any

from engine.loop.events.event import Boundary
from engine.loop.events.profile import ProfileEvent


class Window:
    """Keeps the steps at which it is called."""

    def __init__(self):
        self.steps = []

    def next_step(self, after):
        return after + 2

    def at(self, step, pending):
        self.steps.append(step)


def test_trace_does_not_start_at_the_last_step():
    window: Any = Window()
    event = ProfileEvent(window)
    for step, last in ((2, False), (4, True)):
        event.run(Boundary(step, state=None, position={}, first=False, last=last, stopping=False))  # pyright: ignore
    assert window.steps == [2] and event.next_step(4) == 6
