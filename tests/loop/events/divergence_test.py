"""The check before a save: it asks the policy only if something is wrong, and acts on its decision."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.loop.divergence import Diverged, Divergence
from engine.loop.events.divergence import DivergenceCheck, Rollback
from engine.loop.events.event import Boundary

NAMES = ("loss", "grad_norm", "skipped")


def check(policy, broken=()) -> DivergenceCheck:
    """The check of a run with a checkpoint of step 2; a save is due if `broken` names arrays."""
    parts: dict[str, Any] = dict(
        save=SimpleNamespace(is_due=lambda boundary: bool(broken)),
        recorder=SimpleNamespace(settle=lambda: None),
        program=SimpleNamespace(not_finite=lambda state: broken),
        checkpoints=SimpleNamespace(settle=lambda: None, store=SimpleNamespace(steps=lambda: [2])),
        phases=lambda phase: nullcontext(),
        read_batch=lambda number: None,
    )
    return DivergenceCheck(Divergence(policy, NAMES, print), **parts)


def boundary(step) -> Boundary:
    state: Any = None
    return Boundary(step, state, position={}, first=False, last=False, stopping=False)


def test_policy_is_not_asked_if_all_is_well():
    check("stop").run(boundary(5))


def test_bad_batch_followed_by_a_good_one_rolls_back():
    event = check("rollback")
    event.policy.add_results(4, np.array([[[np.nan, 1], [1, 1], [1, 1]], [[1, 1], [1, 1], [0, 1]]]))
    with pytest.raises(Rollback):
        event.run(boundary(6))
    assert event.policy.skipped == {4} and not event.policy.pending


def test_state_that_is_not_finite_ends_the_run():
    with pytest.raises(Diverged, match=r"step 5: params/w has values that are not finite\. Check"):
        check("stop", ["params/w"]).run(boundary(5))


def test_bad_batch_that_cannot_be_read_again_ends_the_run_with_the_reason_that_is_known():
    event = check("stop")
    event.policy.add_results(4, np.array([[[np.nan, 1], [1, 1], [1, 1]]]))
    with pytest.raises(Diverged, match=r"step 5: the loss is not finite; the update was skipped\. Check"):
        event.run(boundary(5))
