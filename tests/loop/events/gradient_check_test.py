"""Gradient check: its message, a single device, and its line in `convoy explain`.

A whole run with a faulty device is in tests/faults/divergence_test.py.
"""

from typing import Any

import pytest

from engine.base.duration import Duration
from engine.config.schema import MeshSpec
from engine.loop.events.event import Boundary
from engine.loop.events.gradient_check import CheckGradients, GradientError, description, gradient_checks
from tests import zoo

UNUSED: Any = None


def test_single_device_is_reported_and_not_checked():
    said = []
    assert gradient_checks(zoo.program(zoo.Classify()), UNUSED, UNUSED, UNUSED, said.append) == []
    assert said == [
        "warning: resilience.gradient_check: one device has no neighbour that could repeat its gradient. "
        "Nothing is checked."
    ]


def test_message_of_two_devices_names_both_and_what_is_suspect(monkeypatch):
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=2), devices=2)
    read: list[int] = []

    def read_batch(number: int) -> Any:
        read.append(number)

    check = CheckGradients(program, UNUSED, read_batch, UNUSED)

    class Differing:
        def suspects(self, state, batch):
            return {f"{name}/kernel": [0, 1] for name in "abcd"}

    monkeypatch.setattr(check, "_gradients", Differing())
    with pytest.raises(GradientError) as error:
        check.run(Boundary(40, UNUSED, {}, first=False, last=False, stopping=False))
    assert read == [39], "the newest batch"
    assert str(error.value) == (
        "step 40: devices computed different gradients of a/kernel, b/kernel, c/kernel and 1 more from the same rows: "
        "one of device 0 of process 0, device 1 of process 0 is wrong. The arithmetic or memory of a device is faulty. "
        "This state was not saved, but checkpoints since the start of this attempt may have the error. Test that "
        "device or exclude its machine, and set such checkpoints aside."
    )
    assert error.value.exit_code == 42 and error.value.everywhere


def test_explain_tells_the_cost():
    every = Duration(500, "steps")
    assert description(every, 1) == "gradient check: not possible, one device has no neighbour"
    assert description(every, 8) == (
        "gradient check: every 500 steps, each of 8 devices computes two gradients of a microbatch for it"
    )
