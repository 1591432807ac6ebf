"""Ranked predictions of one class: subsets, and exact recalls. `precision_resampler_test` compares the areas."""

import numpy as np
import pytest

from engine.driving.ranked import _RECALLS, Ranked, _least_count, average_precision


@pytest.mark.parametrize("total", [1, 3, 7, 10, 49, 100, 299])
def test_least_count_is_that_of_a_search(total):
    expected = np.searchsorted(np.arange(total + 1) / total, _RECALLS)
    assert _least_count(_RECALLS, np.array([[total]])).tolist() == [expected.tolist()]


@pytest.mark.parametrize("area", ["sum", "voc", "coco", "nuscenes"])
def test_long_and_short_rankings_give_the_same(area, monkeypatch):
    random = np.random.default_rng(0)
    scores, hits = random.random((30, 4)), random.random((2, 30, 4)) < 0.4
    ranked = Ranked.of(scores, np.ones((30, 4), bool), hits, hits[0].sum(1) + 1, area)
    counts = random.poisson(1, (6, 30)).astype(np.int32)
    found = ranked.average_precision(counts)
    monkeypatch.setattr("engine.driving.ranked._LONG", 5)
    monkeypatch.setattr("engine.driving.ranked._BLOCK", 200)
    assert ranked.average_precision(counts) == pytest.approx(found, rel=1e-13)


def test_subset_is_that_of_its_examples():
    random = np.random.default_rng(1)
    scores = random.integers(0, 9, (20, 3)) / 9  # with ties
    hits, rows = random.random((2, 20, 3)) < 0.5, np.array([1, 4, 5, 17])
    chosen, labels = random.random((20, 3)) < 0.8, hits.any(0).sum(1) + 1
    some = Ranked.of(scores, chosen, hits, labels, "sum").subset(rows)
    [found] = some.average_precision(np.ones((1, 4), np.int32))
    for t, value in enumerate(found):
        kept = chosen[rows]
        expected = average_precision(scores[rows][kept], hits[t, rows][kept], int(labels[rows].sum()), "sum")
        assert value == pytest.approx(expected, rel=1e-12)
