"""The kill storm: what counts as a difference. tests/faults/supervisor_test.py runs a storm."""

import pytest

from benchmarks.kill_storm import differences
from benchmarks.outcome import Outcome


def outcome(**changes) -> Outcome:
    whole = {
        "losses": {1: "0x1p0", 2: "0x1p-1"},
        "state": {"params/a": "00", "step": "11"},
        "examples": {1: [3], 2: [4]},
    }
    return Outcome(**whole | changes)  # fmt: skip


def test_equal_outcomes_have_no_difference():
    assert differences(outcome(), outcome(), 2) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"losses": {1: "0x1p0", 2: "0x1.1p-1"}}, "losses: 1 of 2 differ: 2"),
        ({"state": {"params/a": "01", "step": "11"}}, "state: 1 of 2 differ: params/a"),
        ({"examples": {1: [3], 2: [5]}}, "examples: 1 of 2 differ: 2"),
        ({"losses": {1: "0x1p0"}}, "losses: steps that are missing or too many: 2"),
        ({"examples": {1: [3], 2: [4], 3: [5]}}, "examples: steps that are missing or too many: 3"),
    ],
)
def test_each_difference_becomes_a_line(changed, words):
    assert words in differences(outcome(**changed), outcome(), 2)
