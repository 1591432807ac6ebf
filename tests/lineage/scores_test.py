"""Intervals of a single run: right for known distributions, and none where there are too few examples or groups."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engine.lineage.scores import WHOLE, scores
from engine.metrics.mean import Mean
from engine.metrics.slices import Examples

COUNT = 400


def examples(values: np.ndarray, **tags: np.ndarray) -> Examples:
    loss = Mean(jnp.asarray(values, jnp.float32), jnp.ones(len(values)))
    few = np.arange(len(values)) < 9
    return Examples(np.arange(len(values)), {"few": few, "most": ~few, "none": few & False}, {"loss": loss}, tags)


def test_interval_of_a_mean_is_close_to_the_t_interval():
    values = np.random.default_rng(0).normal(3, 2, COUNT)
    found = {one.part: one for one in scores("heldout", examples(values))}
    low, high = stats.t.interval(0.95, COUNT - 1, values.mean(), stats.sem(values))
    assert found[WHOLE].value == pytest.approx(values.mean(), abs=1e-6)
    assert (found[WHOLE].low, found[WHOLE].high) == pytest.approx((low, high), abs=0.03)
    assert (found["most"].examples, found["most"].has_interval) == (COUNT - 9, True)
    assert (found["few"].examples, found["few"].has_interval) == (9, False) and math.isnan(found["few"].low)
    assert "none" not in found and found[WHOLE].higher_is_better is False


def test_groups_are_resampled_as_a_whole():
    group = np.repeat(np.arange(40), 10)
    values = np.random.default_rng(0).normal(0, 1, 40)[group]
    [alone], [grouped] = (
        [one for one in scores("heldout", examples(values, scene=group), tag) if one.part == WHOLE]
        for tag in ("", "scene")
    )
    assert grouped.groups == 40 and alone.groups == COUNT
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.1)


def test_results_are_the_same_each_time_and_progress_is_reported():
    values, done = np.random.default_rng(1).normal(0, 1, 50), []
    first = scores("heldout", examples(values), on_part=lambda *numbers: done.append(numbers))
    assert repr(scores("heldout", examples(values))) == repr(first) and done == [(1, 4), (2, 4), (3, 4), (4, 4)]
