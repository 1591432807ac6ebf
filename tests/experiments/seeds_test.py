"""Intervals over seeds: which one two variants have."""

import math

import pytest

from engine.experiments import statistics
from engine.experiments.comparison import Basis, Variant
from engine.experiments.record import RunRecord
from engine.experiments.seeds import has_seeds, seed_interval, seed_notes

ONE, TWO = [0.5, 0.6, 0.45], [0.4, 0.43, 0.41]


def variant(*seeds: int | None) -> Variant:
    return Variant("a", [RunRecord(path="", state="")] * len(seeds), seeds)


def test_equal_seeds_are_paired_in_any_order():
    expected = statistics.t_interval([0.43 - 0.5, 0.4 - 0.6, 0.41 - 0.45])
    assert seed_interval(variant(0, 1, 2), variant(1, 0, 2), ONE, TWO) == (Basis.SEEDS, pytest.approx(expected))


def test_other_seeds_are_not_paired():
    expected = statistics.welch_interval(ONE, TWO[:2])
    assert seed_interval(variant(0, 1, 2), variant(0, 1), ONE, TWO[:2]) == (Basis.SEPARATE_SEEDS, expected)


def test_seeds_without_spread_have_no_interval_unless_they_are_equal():
    basis, interval = seed_interval(variant(0, 1), variant(0, 1), [0.5, 0.5], [0.7, 0.7])
    assert basis == Basis.NONE and interval.estimate == pytest.approx(0.2) and math.isnan(interval.p)
    assert seed_interval(variant(0, 1), variant(0, 1), [0.5, 0.6], [0.5, 0.6])[1] == (0, 0, 0, 1)


@pytest.mark.parametrize("other", [variant(0, 1), variant(2, 3)])
def test_infinite_results_have_no_interval(other):
    for values, estimate in (([0.5, 0.6], math.inf), ([0.5, math.inf], math.nan)):
        basis, interval = seed_interval(variant(0, 1), other, values, [math.inf, 0.5])
        assert basis == Basis.NONE and interval.estimate == pytest.approx(estimate, nan_ok=True)


def test_two_seeds_against_more_have_a_note():
    counts = [variant(*range(count)) for count in (1, 2, 3)]
    assert seed_notes(counts[2], [counts[0], counts[2]]) == [] == seed_notes(counts[1], counts[:2])
    [note] = seed_notes(counts[2], counts)
    assert note.startswith("a and a: intervals over 3 and 2 seeds hold the true difference as little as 88 times")
    assert seed_notes(counts[1], [counts[2]]) != []


def test_one_run_has_no_seeds():
    assert has_seeds(variant(0, 1), variant(2, 3)) and not has_seeds(variant(0, 1), variant(0))
