"""Thinned curves keep their spikes, their ends and their bound."""

import numpy as np
import pytest

from engine.report.thinning import FEWEST, MOST, TOTAL_POINTS, chosen, points_of_each


@pytest.mark.parametrize("points", [4, 7, 100, 1500])
def test_thinned_curve_keeps_ends_and_extremes_within_its_bound(points):
    steps = np.cumsum(np.random.default_rng(0).integers(1, 9, 20_000))
    values = np.random.default_rng(1).normal(size=20_000)
    values[[4321, 17_000]] = 50, -60
    at = chosen(steps, values, points)
    assert len(at) <= points
    assert {0, 4321, 17_000, 19_999} <= set(at.tolist())
    assert (np.diff(at) > 0).all()


def test_each_interval_keeps_its_smallest_and_largest_value():
    steps = np.arange(1000)
    values = np.sin(steps / 3.0)
    at = chosen(steps, values, 42)
    kept = values[at]
    for low in range(0, 1000, 50):  # 20 intervals
        inside = (steps[at] >= low) & (steps[at] < low + 50)
        assert kept[inside].max() == values[low : low + 50].max()
        assert kept[inside].min() == values[low : low + 50].min()


def test_short_curve_is_kept_as_it_is():
    assert chosen(np.arange(5), np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]
    assert chosen(np.array([3]), np.array([1.0]), 4).tolist() == [0]


def test_many_curves_share_the_points_of_a_report():
    assert points_of_each(1) == MOST
    assert 200 * points_of_each(200) <= TOTAL_POINTS
    assert points_of_each(10**6) == FEWEST
