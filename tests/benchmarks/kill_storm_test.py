"""The kill storm: what counts as a difference, and its variants. tests/faults/supervisor_test.py runs a storm."""

import re

import pytest

import engine
from benchmarks import storm_workloads
from benchmarks.kill_storm import differences, differences_of_layouts, saved_settings
from benchmarks.outcome import Outcome
from benchmarks.outcome import outcome as outcome_of


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


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"losses": {1: "0x1p0", 2: "0x1.00001p-1"}, "state": {}}, []),
        ({"losses": {1: "0x1p0", 2: "0x1.001p-1"}}, ["one process: the loss of step 2 is 0.5, not 0.500122"]),
        ({"losses": {1: "0x1p0", 2: "nan"}}, ["one process: the loss of step 2 is 0.5, not nan"]),
        ({"examples": {1: [3], 2: [5]}}, ["one process: examples of 1 steps differ: 2"]),
    ],
)
def test_numbers_of_processes_may_change_only_the_rounding_of_losses(changed, words):
    assert differences_of_layouts(outcome(**changed), outcome()) == words


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(storm_workloads.VARIANTS.keys() - {"streams"}))
def test_variant_stores_all_that_is_compared(variant, tmp_path):
    """tests/faults/supervisor_test.py runs the variant "streams" in a whole storm."""
    engine.train(storm_workloads.config(variant, 2, **saved_settings(devices=4, every=2)), workdir=tmp_path)
    found = outcome_of(tmp_path)
    assert differences(found, found, 2) == []
    paths = " ".join(found.state)
    assert re.search("ema", paths), paths
