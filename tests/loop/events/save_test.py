"""When a state is saved: by the policy, at the end, on a request to stop, and with the evaluation of the best."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from engine.base.duration import Duration, Period
from engine.loop.events.event import Boundary
from engine.loop.events.save import Prepare, Save

POLICY = SimpleNamespace(is_clock=False, due=lambda step: step == 4, next_step=lambda after: (after // 4 + 1) * 4)
BEST = Period(Duration(3, "steps"), 16, 64, 10, at_end=False)


def save(selecting=()) -> Save:
    anything: Any = SimpleNamespace(policy=POLICY)
    return Save(anything, anything, anything, anything, anything, selecting, 10, print)


def at(step, **settings) -> Boundary:
    fields: dict[str, Any] = dict(state=None, position={}, first=False, last=False, stopping=False)
    return Boundary(step, **(fields | settings))


@pytest.mark.parametrize(
    ("boundary", "due"),
    [
        (at(3), False),
        (at(4), True),
        (at(3, stopping=True), True),
        (at(3, ended=True), True),
        (at(10, last=True), True),
        (at(0, last=True), False),
    ],
)
def test_boundary_is_saved_by_policy_at_the_end_and_on_a_request_to_stop(boundary, due):
    assert save().is_due(boundary) is due


def test_evaluation_that_selects_the_best_makes_a_save_due():
    assert save([BEST]).is_due(at(3)) and not save().is_due(at(3))
    assert (save([BEST]).next_step(2), save().next_step(2)) == (3, 4)


def test_what_the_first_step_does_not_need_starts_once_after_the_second():
    prepared = []
    event = Prepare(lambda *saved: prepared.append(saved), 5, [lambda: prepared.append("thread")], ["base"])
    assert (event.next_step(4), event.next_step(7)) == (7, 8)
    event.run(at(7, state=SimpleNamespace(to_checkpoint=lambda: "state")))
    assert prepared == ["thread", (7, "state", ["base"])] and event.next_step(7) == math.inf
