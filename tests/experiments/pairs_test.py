"""The paired bootstrap: the same examples for every run, and more of them where a p-value is close to the level."""

import math
from typing import Any

import numpy as np
import pytest

from engine.experiments.comparison import Difference
from engine.experiments.joined import Joined
from engine.experiments.pairs import Paired
from engine.metrics import Mean
from engine.metrics.metric import Metric
from engine.metrics.slices import Examples
from tests.experiments.made import errors, mean_of

COUNT = 200


class Doubled(Mean):
    """A metric of a user, which is computed for each resample."""

    def compute(self) -> Any:
        return {"": 2 * self.total / self.weight, "half": self.total / self.weight}


def paired(one: Metric, two: Metric, slices: dict[str, np.ndarray] | None = None) -> Paired:
    first, second = ([Examples(np.arange(COUNT), slices or {}, {"x": metric})] for metric in (one, two))
    return Paired(1, Joined("val", (first, second)))


def by_part(found: list[Difference]) -> dict[tuple[str, str], Difference]:
    return {(x.part, x.metric): x for x in found}


def test_metrics_of_users_have_intervals():
    one, two = errors(0.0), errors(0.05, noise_seed=2)
    plain = by_part(paired(mean_of(one), mean_of(two)).differences(200))["", "x"]
    found = by_part(paired(Doubled(*_fields(one)), Doubled(*_fields(two))).differences(200))
    assert found["", "x"].interval[:3] == pytest.approx([2 * x for x in plain.interval[:3]], rel=1e-4)
    assert found["", "x/half"].interval == pytest.approx(plain.interval, rel=1e-4)


class Named(Mean):
    """A metric of a user that names a number after what it finds."""

    def compute(self) -> Any:
        return {"": self.total / self.weight, **({"first": self.total / self.weight} if self.weight > COUNT else {})}


def test_number_that_only_some_resamples_have_has_an_interval_over_these(monkeypatch):
    """The first example has the weight 2, so that 63 % of the resamples are heavier than the examples."""
    monkeypatch.setattr("engine.experiments.statistics._LARGEST", 2 * COUNT)  # blocks of two resamples
    weight: Any = np.where(np.arange(COUNT) == 0, 2, 1)
    one, two = (Named(_fields(x)[0], weight) for x in (errors(0.0), errors(0.05, noise_seed=2)))
    found = by_part(paired(one, two).differences(300))["", "x/first"]
    assert found.interval.low > 0 and found.resamples == 1200


def test_examples_that_are_infinite_in_both_runs_have_no_interval():
    one, two = errors(0.0), errors(0.05, noise_seed=2)
    one[3] = two[3] = np.inf
    found = by_part(paired(mean_of(one), mean_of(two), {"rest": np.arange(COUNT) != 3}).differences(100))
    assert math.isnan(found["", "x"].interval.low) and found["rest", "x"].interval.low > 0


def _fields(values: np.ndarray) -> tuple[Any, Any]:
    metric = mean_of(values)
    return metric.total, metric.weight


def test_equal_runs_do_not_differ():
    one = mean_of(errors(0.0))
    found = by_part(paired(one, one).differences(200))["", "x"]
    assert found.interval == (0, 0, 0, 1) and found.resamples == 200


def test_slices_are_resampled_by_themselves_and_counted():
    two = errors(0.0)
    two[:60] += 0.5 + 0.1 * np.random.default_rng(0).normal(size=60)
    slices = {"some": np.arange(COUNT) < 60, "few": np.arange(COUNT) < 29, "none": np.zeros(COUNT, bool)}
    parts: list[int] = []
    found = by_part(paired(mean_of(errors(0.0)), mean_of(two), slices).differences(200, lambda: parts.append(1)))
    assert set(found) == {("", "x"), ("some", "x"), ("few", "x")} and len(parts) == 3
    assert found["some", "x"].examples == 60 and found["some", "x"].interval.low > 0.4
    assert found["few", "x"].interval.estimate > 0.4 and math.isnan(found["few", "x"].interval.low)


def test_only_parts_that_are_close_to_the_level_get_more_resamples():
    """The second of two slices has p = 0.05, which the correction leaves as it is, since the first one is sure."""
    noise = np.random.default_rng(5).normal(size=COUNT // 2)
    noise = (noise - noise.mean()) / noise.std()
    change = np.concatenate([noise + 1.0, noise + 1.98 / np.sqrt(COUNT // 2)])
    slices = {"sure": np.arange(COUNT) < COUNT // 2, "close": np.arange(COUNT) >= COUNT // 2}
    found = by_part(paired(mean_of(errors(0.0)), mean_of(errors(0.0) + change), slices).differences(1000))
    assert {part: x.resamples for (part, _), x in found.items()} == {"": 1000, "sure": 1000, "close": 16_000}
