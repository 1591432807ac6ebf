"""Quantiles and histograms equal those of numpy, with masks and partial batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import TaskError
from engine.metrics import Bins, Histogram, Quantiles
from tests.merging import results
from tests.properties import examples

SHAPE = (6, 4)


@examples(25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_quantiles_equal_numpy(seed, batch_size):
    rng = np.random.default_rng(seed)
    values, where = rng.normal(size=SHAPE).astype(np.float32), rng.random(SHAPE) < 0.7
    where[0, 0] = True
    values[1] = np.where(where[1], values[1], np.nan)
    found = results(Quantiles.of(values, where, q=(0, 0.25, 0.999)), batch_size)
    expected = np.quantile(values[where].astype(np.float64), (0, 0.25, 0.999))
    assert list(found) == ["m/p0", "m/p25", "m/p99.9"]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)


@pytest.mark.slow
@examples(25)
@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
def test_histogram_equals_numpy(seed, batch_size, masked):
    rng = np.random.default_rng(seed)
    values, edges = rng.integers(-2, 7, SHAPE).astype(np.float32), (0, 1, 2.5, 5)
    where = rng.integers(0, 3, SHAPE) / 2 if masked else None
    found = results(Histogram.of(values, edges, where), batch_size)["m"]
    expected, _ = np.histogram(values, edges, weights=where)
    assert isinstance(found, Bins)
    np.testing.assert_array_equal(found.counts, expected)
    np.testing.assert_array_equal(found.edges, edges)


def test_mask_of_rows_applies_to_all_their_values():
    counts = results(Histogram.of(np.ones((3, 2)), (0, 2), np.array([1, 0, 1])))["m"]
    assert isinstance(counts, Bins)
    assert counts.counts.tolist() == [4]
    assert results(Quantiles.of(np.arange(6).reshape(3, 2), np.array([0, 1, 0]), q=(1,))) == {"m/p100": 3}


def test_quantiles_without_values_are_nan():
    assert np.isnan(results(Quantiles.of(np.ones(3), np.zeros(3)))["m/p50"])
    with pytest.raises(TaskError, match=r"Quantiles.of needs values \[batch, ...\], found a scalar"):
        Quantiles.of(np.float32(1))


def test_percentiles_and_unsorted_edges_are_errors():
    with pytest.raises(TaskError, match=r"Quantiles.of: q has 50. Allowed: 0 to 1, such as 0.9 for the 90th"):
        Quantiles.of(np.ones(3), q=(50, 90))
    for edges in ([0], [0, 2, 1]):
        with pytest.raises(TaskError, match=r"Histogram.of: edges = \[0.*\]. Allowed: two or more increasing numbers"):
            Histogram.of(np.ones(3), edges)
