"""Results over multisets of examples: those of a dataset that holds its examples as often."""

from typing import Any

import numpy as np
import pytest

from engine.experiments import resampling
from engine.metrics import Mean, Quantiles
from engine.metrics.state import compute

COUNTS = np.array([[2, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 4], [0, 4, 0, 0]])


def test_mean_over_a_multiset_is_that_of_the_repeated_examples():
    fields: Any = np.array([[1, 0, 3, 6], [1, 0, 1, 2]], np.float32)
    metric = Mean(fields[0], fields[1])
    found = list(resampling.resampled("loss", metric, COUNTS))
    assert found[:3] == [{"loss": 11 / 5}, {"loss": 10 / 4}, {"loss": 3.0}]
    assert np.isnan(found[3]["loss"])  # only examples of weight 0
    for counts, value in zip(COUNTS[:3], found, strict=False):
        assert resampling.results("loss", metric, counts) == pytest.approx(value)


def test_collected_entries_are_repeated():
    metric = Quantiles.of(np.arange(4.0)[:, None], np.ones((4, 1)))
    repeated = Quantiles.of(np.array([0.0, 0.0, 2.0, 3.0])[:, None], np.ones((4, 1)))
    [found] = resampling.resampled("error", metric, COUNTS[:1])
    assert found == {name: pytest.approx(value) for name, value in compute("error", _numpy(repeated)).items()}


def _numpy(metric):
    return resampling.merged(metric, np.ones(4, np.int64))
