"""Results over multisets of examples: those of a dataset that holds its examples as often."""

from typing import Any

import numpy as np
import pytest

from engine.experiments import resampling
from engine.metrics import Mean, Quantiles, Sum
from engine.metrics.state import compute

COUNTS = np.array([[2, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 4], [0, 4, 0, 0]])


def test_mean_over_a_multiset_is_that_of_the_repeated_examples():
    fields: Any = np.array([[1, 0, 3, 6], [1, 0, 1, 2]], np.float32)
    metric = Mean(fields[0], fields[1])
    found = resampling.resampler("loss", metric).numbers(COUNTS)[""]
    assert found[:3] == pytest.approx([11 / 5, 10 / 4, 3.0])
    assert np.isnan(found[3])  # only examples of weight 0
    for counts, value in zip(COUNTS[:3], found, strict=False):
        assert resampling.results("loss", metric, counts) == {"loss": pytest.approx(value)}


def test_collected_entries_are_repeated():
    metric = Quantiles.of(np.arange(4.0)[:, None], np.ones((4, 1)))
    repeated = Quantiles.of(np.array([0.0, 0.0, 2.0, 3.0])[:, None], np.ones((4, 1)))
    found = resampling.Repeated("error", metric).numbers(COUNTS[:1])
    expected = compute("error", resampling.merged(repeated, np.ones(4, np.int64)))
    assert {f"error/{name}": values[0] for name, values in found.items()} == pytest.approx(expected)


def test_subset_has_the_examples_of_a_slice():
    metric = Quantiles.of(np.arange(4.0)[:, None], np.ones((4, 1)))
    some = resampling.Repeated("error", metric).subset(np.array([1, 3]))
    assert some.numbers(np.ones((1, 2), np.int64))["p50"] == [2.0]


def test_sums_of_integers_stay_integers():
    values: Any = np.arange(4, dtype=np.int32)
    found: Any = resampling.merged(Sum(values), COUNTS[0]).total
    assert [found, found.dtype] == [5, np.int64]
