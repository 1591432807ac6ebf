"""The kill storm: what counts as a difference, and a run that is killed once."""

import re

import pytest

from benchmarks.kill_storm import differences
from benchmarks.outcome import Outcome
from tests.benchmarks.processes import benchmark


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


@pytest.mark.slow
@pytest.mark.multiprocess
def test_run_that_is_killed_once_equals_the_unbroken_run():
    output = benchmark("kill_storm", "--kills", "1", "--seed", "3", "--processes", "1", seconds=280)
    assert "seed 3, 1 kills" in output
    assert re.search(r"kill   1: .* in exit     after step \d+", output), output
    assert re.search(r"goodput \d+\.\d% of .*, 30 steps in 2 attempts", output), output
    assert output.splitlines()[-1] == "1 kills, 2 attempts, exit code 0, 0 differences"
