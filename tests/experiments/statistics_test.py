"""Intervals and p-values: equal to scipy's where scipy has them, and of the stated coverage in simulations."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.experiments import statistics


def test_group_counts_draw_each_group_once_on_average_and_do_not_depend_on_the_number():
    counts = np.concatenate(list(statistics.group_counts(40, 600, seed=3)))
    assert counts.shape == (600, 40) and (counts.sum(1) == 40).all()
    assert abs(counts.mean(0) - 1).max() < 0.2
    assert (np.concatenate(list(statistics.group_counts(40, 300, seed=3))) == counts[:300]).all()


def test_counts_of_examples_are_those_of_their_groups_in_blocks_of_bounded_size():
    group_of = np.tile(np.arange(30), 2**15)
    blocks = list(statistics.example_counts(group_of, 30, 40, seed=3))
    assert max(counts.nbytes for counts in blocks) <= 2**27
    [groups] = statistics.group_counts(30, 40, seed=3)
    assert (np.concatenate([counts[:, :30] for counts in blocks]) == groups).all()
    assert all((counts == counts[:, group_of]).all() for counts in blocks)


def test_t_interval_is_that_of_scipy():
    values = [0.3, -0.1, 0.5, 0.4]
    found = statistics.t_interval(values)
    test: Any = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(test.confidence_interval())
    assert (found.estimate, found.p) == pytest.approx((np.mean(values), test.pvalue))


def test_welch_interval_is_that_of_scipy():
    first, second = [0.1, 0.4, 0.2], [0.9, 0.5, 0.7, 0.8]
    found = statistics.welch_interval(first, second)
    test: Any = stats.ttest_ind(second, first, equal_var=False)
    assert (found.low, found.high) == pytest.approx(test.confidence_interval())
    assert (found.estimate, found.p) == pytest.approx((np.mean(second) - np.mean(first), test.pvalue))


@pytest.mark.parametrize("found", [statistics.t_interval([0.5]), statistics.welch_interval([0.1], [0.6, 0.6])])
def test_one_seed_has_no_interval(found):
    assert found.estimate == pytest.approx(0.5) and math.isnan(found.low) and math.isnan(found.p)


def test_seeds_without_spread_have_no_interval():
    """Two seeds that found the same number do not show that a third one does."""
    for found in (statistics.t_interval([0.3, 0.1 + 0.2]), statistics.welch_interval([0.1, 0.1], [0.4, 0.4])):
        assert found.estimate == pytest.approx(0.3) and math.isnan(found.low) and math.isnan(found.p)
    assert statistics.t_interval([0.0, 0.0]) == (0, 0, 0, 1)


def test_holm_is_that_of_its_definition_and_leaves_out_nan():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.01, math.nan, 0.9]) == pytest.approx([0.02, math.nan, 0.9], nan_ok=True)


def test_too_few_groups_or_values_give_no_interval():
    values = np.linspace(-1, 1, 200)
    assert math.isnan(statistics.bootstrap_interval(0.1, values, groups=29).low)
    assert not math.isnan(statistics.bootstrap_interval(0.1, values, groups=30).low)
    values[:101] = math.nan
    assert math.isnan(statistics.bootstrap_interval(0.1, values, groups=30).low)


def test_p_value_fits_the_interval():
    """An interval of level 1 - p ends at 0."""
    resampled = np.random.default_rng(0).normal(0.5, 0.3, 100_000)
    found = statistics.bootstrap_interval(0.5, resampled, groups=50)
    ends_at_zero = statistics.bootstrap_interval(0.5, resampled, groups=50, level=1 - found.p)
    assert ends_at_zero.low == pytest.approx(0, abs=0.005)
    assert found.low < 0 < found.high or found.p < 0.05


@pytest.mark.parametrize("p", [1e-3, 2.5e-4, 1e-5])
def test_p_value_below_the_resolution_is_that_of_the_tail(p):
    """Of normal values the p-value is that of a t test, though 2,000 resamples cannot count it."""
    groups, found = 400, []
    for seed in range(10):
        values = np.random.default_rng(seed).normal(size=groups)
        values += np.sqrt(values.var(ddof=1) / groups) * stats.t.isf(p / 2, groups - 1) - values.mean()
        resampled = np.concatenate([counts @ values / groups for counts in statistics.group_counts(groups, 2000, seed)])
        found.append(statistics.bootstrap_interval(float(values.mean()), resampled, groups).p)
    assert 1 / 2 < np.exp(np.mean(np.log(found))) / p < 2
    assert p / 12 < min(found) and max(found) < 12 * p


def test_p_value_of_constant_resamples_is_the_smallest_that_can_be_counted():
    found = statistics.bootstrap_interval(1.0, np.full(999, 1.0), groups=80)
    assert 5e-4 < found.p < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "skewed"), [(30, False), (100, False), (100, True), (400, True)])
def test_intervals_cover_the_truth_as_often_as_they_say(groups, skewed):
    """Over 5,000 data sets, between 93 and 97 % of the 95 % intervals hold the true mean, and p-values are uniform."""
    random, sets = np.random.default_rng(1), 5000
    values = random.exponential(1.0, (sets, groups)) if skewed else random.normal(1.0, 1.0, (sets, groups))
    means = [counts @ values.T / groups for counts in statistics.group_counts(groups, 1000, seed=2)]
    resampled = np.concatenate(means)
    found = [
        statistics.bootstrap_interval(estimate - 1, resampled[:, at] - 1, groups)
        for at, estimate in enumerate(values.mean(1))
    ]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in found])
    assert 0.93 <= covered <= 0.97
    assert np.mean([interval.p < 0.05 for interval in found]) == pytest.approx(1 - covered, abs=0.005)


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 5), (3, 8)])
def test_intervals_over_seeds_cover_the_truth_as_often_as_they_say(seeds):
    """Over 5,000 pairs of settings whose spreads differ by a factor of 2."""
    random = np.random.default_rng(4)
    first, second = (random.normal(size=(5000, count)) * spread for count, spread in zip(seeds, (1, 2), strict=True))
    welch = [statistics.welch_interval(a, b) for a, b in zip(first, second, strict=True)]
    covered = {"welch": np.mean([found.low <= 0 <= found.high for found in welch])}
    if seeds[0] == seeds[1]:
        paired = [statistics.t_interval(differences) for differences in second - first]
        covered["t"] = np.mean([found.low <= 0 <= found.high for found in paired])
    assert all(0.93 <= share <= 0.97 for share in covered.values()), covered


def test_error_of_a_p_value_falls_with_the_resamples():
    counted = np.concatenate([-np.ones(100), np.ones(900)])
    assert statistics.relative_error_of_p(counted) == pytest.approx(0.1)
    assert statistics.relative_error_of_p(np.ones(900)) == pytest.approx(1.0)
