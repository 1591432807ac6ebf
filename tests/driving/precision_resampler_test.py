"""Average precision over many resamples at once: that of `compute` on the repeated examples, for every setting."""

from typing import Any

import numpy as np
import pytest

from engine.driving.detection import AveragePrecision
from engine.experiments.resampling import Repeated
from engine.metrics.resampling import resampler_of
from tests.metrics.drawn import counts_of

EXAMPLES = 14


def detections(random: np.random.Generator, dim: int = 2, ties: int = 0) -> tuple[Any, ...]:
    """Returns arguments of `AveragePrecision.of`: predictions near labels, of which some are padding.

    With `ties`, there are so many different scores.
    """
    boxes = random.uniform(-20, 20, (EXAMPLES, 5, dim))
    labels, where = random.integers(0, 3, (EXAMPLES, 5)), random.random((EXAMPLES, 5)) < 0.8
    if dim == 4:
        boxes[..., 2:] = boxes[..., :2] + random.uniform(1, 8, (EXAMPLES, 5, 2))
    near = boxes[:, random.integers(0, 5, 9)]
    predicted = near + random.normal(size=near.shape) * random.choice([0.1, 1.0, 3.0], (EXAMPLES, 9, 1))
    guesses, scores = random.integers(0, 3, (EXAMPLES, 9)), random.random((EXAMPLES, 9))
    if ties:
        scores = (np.floor(scores * ties) / ties).astype(np.float32)
    return predicted, scores, guesses, boxes, labels, where


def check(metric: AveragePrecision) -> None:
    """Compares the numbers of all examples, and of some of them."""
    fast, slow, rows = resampler_of(metric), Repeated("ap", metric), np.array([1, 2, 6, 8, 13])
    assert fast is not None
    once = counts_of(12, EXAMPLES)
    for one, other, counts in ((fast, slow, once), (fast.subset(rows), slow.subset(rows), counts_of(5, 5))):
        found, expected = one.numbers(counts), other.numbers(counts)
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-11, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("area", ["sum", "voc", "coco", "nuscenes"])
def test_areas_are_those_of_repeated_examples(area, seed):
    arguments = detections(np.random.default_rng(seed), ties=9 if area in ("sum", "voc") else 0)
    check(AveragePrecision.of(*arguments, classes=("car", "van", ""), area=area))


@pytest.mark.parametrize("ties", [1, 3, 30])
@pytest.mark.parametrize("area", ["coco", "nuscenes"])
def test_ties_are_broken_as_in_repeated_examples(area, ties):
    """Of one example, between examples, and between the copies of an example."""
    check(AveragePrecision.of(*detections(np.random.default_rng(7), ties=ties), classes=3, area=area))


def test_ranges_sizes_recalls_and_ignored_labels_are_those_of_repeated_examples():
    random = np.random.default_rng(2)
    arguments, ignored = detections(random, dim=4), random.random((EXAMPLES, 5)) < 0.2
    metric = AveragePrecision.of(
        *arguments, classes=("car", "van", "bus"), ignored=ignored, match="iou", thresholds=(0.3, 0.6),
        ranges=((0, 10), (10, 40)), max_detections=4,
    )  # fmt: skip
    check(metric.with_recall((1, 4)).by_size({"small": (0, 10), "large": (10, 1e5)}))


def test_classes_without_labels_or_predictions():
    predicted, scores, guesses, boxes, labels, where = detections(np.random.default_rng(3))
    metric = AveragePrecision.of(
        predicted, scores, guesses * 0, boxes, labels.clip(0, 1), where, classes=("a", "b", "c")
    )
    check(metric)
    none = np.zeros((EXAMPLES, 0))
    check(AveragePrecision.of(np.zeros((EXAMPLES, 0, 2)), none, none, boxes, labels, classes=3))


@pytest.mark.parametrize("area", ["coco", "nuscenes"])
def test_recalls_that_are_reached_exactly(area):
    """Of 10 and of 100 labels, recalls such as 0.3 are quotients that are rounded."""
    count = 10
    boxes = np.arange(2.0 * count).reshape(count, 1, 2) * 100
    scores = np.linspace(0.9, 0.1, count)[:, None]
    missed = boxes + 50 * (np.arange(count)[:, None, None] % 3 == 2)
    zeros = np.zeros((count, 1), int)
    metric = AveragePrecision.of(missed, scores, zeros, boxes, zeros, classes=1, area=area)
    fast, slow, counts = (
        resampler_of(metric),
        Repeated("ap", metric),
        np.stack([np.ones(count, int), np.full(count, 10)]),
    )
    assert fast is not None
    assert fast.numbers(counts)[""] == pytest.approx(slow.numbers(counts)[""], rel=1e-12)
