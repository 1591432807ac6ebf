"""Resamplers of metrics: their numbers are those of `compute` on the repeated examples."""

from typing import Any

import numpy as np
import pytest

from engine.driving.forecasting import BestOfModes
from engine.experiments.resampling import Repeated
from engine.metrics import ConfusionMatrix, Mean, Ratio, RootMeanSquare, Sum
from engine.metrics.metric import Metric
from engine.metrics.resampling import resampler_of, weighted_sum
from tests.metrics.drawn import EXAMPLES, counts_of


def metrics() -> dict[str, Metric]:
    """Returns a metric of each class that has a resampler."""
    random = np.random.default_rng(0)
    values, where = random.normal(size=(EXAMPLES, 3)), random.random((EXAMPLES, 3)) < 0.7
    guesses, labels = random.integers(0, 4, (EXAMPLES, 2)), random.integers(0, 3, (EXAMPLES, 2))
    return {
        "mean": Mean.of(values, where),
        "rms": RootMeanSquare.of(values, where),
        "sum": Sum.of(values),
        "ratio": Ratio.of(values, values**2),
        "matrix": ConfusionMatrix.of(guesses, labels, ("a", "b", "", "c")),
        "column": ConfusionMatrix.of(guesses + (guesses == 3), labels, ("a", "b", "", "c"), outside="column"),
        "modes": BestOfModes.of(random.normal(size=(EXAMPLES, 2, 3, 4, 2)), random.normal(size=(EXAMPLES, 2, 4, 2))),
    }


@pytest.mark.parametrize("name", list(metrics()))
def test_numbers_are_those_of_repeated_examples(name):
    metric, rows = metrics()[name], np.array([0, 2, 3, 7, 11])
    fast, slow = resampler_of(metric), Repeated(name, metric)
    assert fast is not None
    for one, other, counts in ((fast, slow, counts_of(20)), (fast.subset(rows), slow.subset(rows), counts_of(5, 5))):
        found, expected = one.numbers(counts), other.numbers(counts)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key] == pytest.approx(values, rel=1e-12, nan_ok=True), key


def test_subclass_with_its_own_compute_does_not_use_the_resampler_of_its_base():
    class Doubled(Mean):
        def compute(self):
            return 2 * super().compute()

    class Renamed(Mean):
        pass

    ones: Any = np.ones(3)
    assert resampler_of(Doubled(ones, ones)) is None
    assert resampler_of(Renamed(ones, ones)) is not None


def test_example_that_is_not_drawn_does_not_count_even_if_it_is_nan():
    counts = np.array([[0, 2, 1], [1, 1, 1]])
    found = weighted_sum(counts, np.array([np.nan, 1.0, np.inf]))
    assert found[0] == np.inf and np.isnan(found[1])
