"""Calls of hooks: at their steps, and at an early end those that were not due."""

from typing import Any

import pytest

from engine.base.duration import Duration, Period
from engine.loop.events.event import Boundary
from engine.loop.events.hook import CallHook, hook_events
from engine.loop.hooks import Stop

EVERY = Period(Duration(4, "steps"), 16, 64, 10)


def boundary(step, ended=False) -> Boundary:
    state: Any = {"w": 1}
    return Boundary(step, state, position={}, first=False, last=ended, stopping=False, ended=ended)


@pytest.mark.parametrize(("step", "ended", "called"), [(4, False, 1), (5, False, 0), (5, True, 1), (4, True, 0)])
def test_early_end_calls_the_hooks_that_were_not_due(step, ended, called):
    calls = []
    hook = CallHook("a", lambda state, step: calls.append(step), EVERY, {})
    hook.run(boundary(step, ended))
    assert calls == [step] * called


def test_first_stop_of_a_step_ends_the_run_and_its_metrics_are_recorded():
    added = []

    class Results:
        def add(self, step, results, last=False):
            added.append((step, dict(results)))

    calls = {
        "a": (lambda state, step: Stop("it is enough", {"norm": 2.0}), EVERY),
        "b": (lambda state, step: {}, EVERY),
    }
    results: Any = Results()
    events = hook_events(calls, results, {}, hang_s=60.0)
    at = boundary(4)
    for event in events:
        event.run(at)
    assert at.stop == "the hook a stopped the run: it is enough"
    assert added == [(4, {"a/norm": 2.0})]
    assert hook_events({}, results, {}, hang_s=60.0) == []
