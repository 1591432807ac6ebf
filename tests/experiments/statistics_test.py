"""Intervals and p-values: their coverage in simulations, and where they say nothing."""

import math

import numpy as np
import pytest

from engine.experiments import statistics


def test_group_counts_draw_each_group_once_on_average_and_do_not_depend_on_the_number():
    counts = np.concatenate(list(statistics.group_counts(40, 600, seed=3)))
    assert counts.shape == (600, 40) and (counts.sum(1) == 40).all()
    assert abs(counts.mean(0) - 1).max() < 0.2
    assert (np.concatenate(list(statistics.group_counts(40, 300, seed=3))) == counts[:300]).all()


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
