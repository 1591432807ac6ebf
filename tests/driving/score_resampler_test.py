"""The nuScenes detection score over many resamples: that of `compute` on the repeated examples."""

from typing import Any

import numpy as np
import pytest

from engine.driving.detection_score import DetectionScore
from engine.experiments.resampling import Repeated
from engine.metrics.resampling import resampler_of
from tests.metrics.drawn import counts_of

EXAMPLES = 10


def score(seed: int, ties: int = 0, **options: Any) -> DetectionScore:
    """Returns a score of predictions near labels, of which some are padding; with `ties`, of so many scores."""
    random = np.random.default_rng(seed)
    boxes = random.uniform(1, 20, (EXAMPLES, 4, 9))
    labels, where = random.integers(0, 3, (EXAMPLES, 4)), random.random((EXAMPLES, 4)) < 0.8
    near = boxes[:, random.integers(0, 4, 7)]
    predicted = near + random.normal(size=near.shape) * random.choice([0.05, 0.5, 2.0], (EXAMPLES, 7, 1))
    scores, guesses = random.random((EXAMPLES, 7)), random.integers(0, 3, (EXAMPLES, 7))
    scores = np.ceil(scores * ties) / ties if ties else scores
    return DetectionScore.of(
        predicted, scores, guesses, boxes, labels, where, classes=("car", "cone", "bus"), **options
    )  # fmt: skip


def attributes(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    given = random.integers(0, 2, (EXAMPLES, 7)), np.where(random.random((EXAMPLES, 4)) < 0.1, 1, -1)
    return {"attributes": given}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": 3},
        {"ties": 1},
        attributes(0),
        {"ranges": ((0, 15), (15, 30)), "without": {"cone": ("orientation",)}, "farthest": {"car": 18.0}},
    ],
)
def test_numbers_are_those_of_repeated_examples(options):
    metric, rows = score(1, **options), np.array([0, 2, 3, 7])
    fast, slow = resampler_of(metric), Repeated("nds", metric)
    assert fast is not None
    once = counts_of(6, EXAMPLES)
    for one, other, counts in ((fast, slow, once), (fast.subset(rows), slow.subset(rows), counts_of(4, 4))):
        found, expected = one.numbers(counts), other.numbers(counts)
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-11, abs=1e-12, nan_ok=True), name
