"""A subclass of Metric has fields and `compute`; it is a frozen dataclass and a pytree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.metrics import Metric, collected
from engine.metrics.metric import array_fields, settings
from tests.merging import results


class Calibration(Metric):
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, section 2)."""

    hits: jax.Array
    confidence: jax.Array
    count: jax.Array
    unit: str = "share"

    @classmethod
    def of(cls, probabilities, labels):
        best = probabilities.max(-1)
        bins = jax.nn.one_hot((best * 10).astype(int).clip(0, 9), 10)
        return cls(bins * (probabilities.argmax(-1) == labels)[:, None], bins * best[:, None], bins)

    def compute(self):
        return {self.unit: np.abs(self.hits - self.confidence).sum() / self.count.sum()}


class Largest(Metric):
    values: "jax.Array" = collected()

    def compute(self):
        return self.values.max()


def test_own_metric_merges_over_batches():
    probabilities = jnp.array([[0.95, 0.05], [0.85, 0.15], [0.05, 0.95], [0.15, 0.85], [0.35, 0.65]])
    metric = Calibration.of(probabilities, jnp.array([0, 1, 1, 1, 0]))
    expected = (abs(2 - 1.9) + abs(1 - 1.7) + abs(0 - 0.65)) / 5
    assert results(metric, 2) == {"m/share": pytest.approx(expected)}
    assert results(Largest(jnp.array([1.0, 5.0, 2.0])), 2) == {"m": 5}


def test_fields_are_arrays_or_settings():
    metric = Calibration.of(jnp.ones((3, 2)), jnp.zeros(3))
    assert list(array_fields(metric)) == [("hits", False), ("confidence", False), ("count", False)]
    assert settings(metric) == {"unit": "share"}
    assert len(jax.tree.leaves(metric)) == 3
    assert jax.tree.map(lambda x: x + 1, metric).unit == "share"
    assert list(array_fields(Largest(jnp.ones(3)))) == [("values", True)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.hits = jnp.ones(3)  # pyright: ignore[reportAttributeAccessIssue]


def test_metric_without_compute_is_an_error():
    class Unfinished(Metric):
        total: jax.Array

    with pytest.raises(TaskError, match=r"Unfinished has no compute\(self\). Define it and return a number, or a dict"):
        Unfinished(jnp.ones(3)).compute()
