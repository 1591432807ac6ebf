"""The schedule of events: which events run at a step, in which order, and where a dispatch ends."""

import math
from typing import cast

import pytest

from engine.loop.events.event import Boundary, EventSchedule
from engine.loop.phases import TRAINING
from engine.training.state import TrainState


class Every:
    """An event that is due every n steps."""

    phase = TRAINING

    def __init__(self, name, n, *, ends_dispatch=True, interrupts=False):
        self.name, self.n, self.ends_dispatch, self.interrupts = name, n, ends_dispatch, interrupts
        self.runs_at_end = name == "save"

    def next_step(self, after) -> float:
        return (max(after, 0) // self.n + 1) * self.n

    def run(self, boundary):
        boundary.interrupted = self.interrupts


class Never(Every):
    def next_step(self, after):
        return math.inf


def at(step):
    return Boundary(step, state=cast(TrainState, None), position={}, first=False, last=False, stopping=False)


def names(schedule, step):
    found, boundary = [], at(step)
    for event in schedule.due(boundary):
        event.run(boundary)
        found.append(event.name)
    return found


def test_due_events_run_in_list_order():
    schedule = EventSchedule([Every("save", 4), Never("never", 1), Every("evaluate", 2), Every("hook", 4)], 0)
    assert names(schedule, 0) == []
    assert schedule.advance(0, 100) == (2, 2)
    assert names(schedule, 2) == ["evaluate"]
    assert schedule.advance(2, 100) == (4, 4)
    assert names(schedule, 4) == ["save", "evaluate", "hook"]


def test_event_at_the_first_step_of_a_resumed_run_is_due():
    assert names(EventSchedule([Every("evaluate", 4), Every("hook", 3)], 4), 4) == ["evaluate"]


def test_clock_event_does_not_end_a_dispatch_and_runs_at_the_next_boundary():
    schedule = EventSchedule([Every("save", 3, ends_dispatch=False), Every("evaluate", 8)], 0)
    assert schedule.advance(0, 100) == (3, 8)
    assert names(schedule, 4) == ["save"]


@pytest.mark.parametrize("events", [[], [Never("never", 1)], [Every("hook", 50)]])
def test_dispatch_ends_at_the_last_step(events):
    assert EventSchedule(events, 0).advance(0, 10) == (10, 10)


def test_no_event_runs_after_an_interrupted_event():
    schedule = EventSchedule([Every("evaluate", 2, interrupts=True), Every("hook", 2)], 2)
    assert names(schedule, 2) == ["evaluate"]


def test_event_can_be_brought_forward():
    schedule = EventSchedule([Never("never", 1), Every("save", 8)], 0)
    schedule.advance(0, 100)
    schedule.bring_forward(3, Never)
    assert names(schedule, 3) == ["never"]
