"""The reduction on the device and the sums on the host are exact, and wrong metrics are named."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.metrics import Mean, Metric, Sum, collected
from engine.metrics.state import MetricStates, check_metrics


class Both(Metric):
    """A sum and a collected field, and a setting."""

    total: jax.Array
    kept: jax.Array = collected()
    unit: object = "m"

    def compute(self):
        return {"total": self.total, "kept": self.kept}


def merged(metrics, *batches) -> dict[str, Any]:
    states = MetricStates(jax.eval_shape(lambda: metrics))
    merger = states.merger()
    for batch, rows in batches:
        merger.add(states.reduce(batch, rows))
    return merger.metrics()


def test_rows_of_weight_zero_are_left_out_even_if_nan():
    metrics = {"a": Both(jnp.array([[1.0, 2], [3, 4], [jnp.nan, 5]]), jnp.array([7, 8, 9]))}
    batch = (metrics, jnp.array([1.0, 1, 0]))
    found = merged(metrics, batch, batch)["a"]
    assert found.total.tolist() == [8, 12]
    assert found.kept.tolist() == [7, 8, 7, 8]
    assert found.total.dtype == np.float64


def test_integers_are_summed_exactly():
    large = 2**24 + 1  # not a float32
    metrics = {"a": Sum(jnp.array([large, 1]))}
    found = merged(metrics, *[(metrics, jnp.ones(2))] * 200)["a"]
    assert found.total.dtype == np.int64
    assert found.total == 200 * (large + 1)


def test_metric_of_no_batch_has_empty_rows_and_zero_sums():
    metrics = {"a": Both(jnp.ones((3, 2)), jnp.ones((3, 4), jnp.int8))}
    found = merged(metrics)["a"]
    assert found.total.tolist() == [0, 0]
    assert found.kept.shape == (0, 4)


def test_collected_rows_of_several_lengths_are_padded_to_the_largest():
    class Filled(Metric):
        kept: jax.Array = collected(fill=-1)
        mask: jax.Array = collected()

        def compute(self):
            return self.kept

    short, long = ({"a": Filled(jnp.full((2, n), n), jnp.ones((2, n), bool))} for n in (1, 3))
    found = merged(long, (short, jnp.array([1.0, 0])), (long, jnp.ones(2)))["a"]
    assert found.kept.tolist() == [[1, -1, -1], [3, 3, 3], [3, 3, 3]]
    assert found.mask.tolist() == [[True, False, False], [True] * 3, [True] * 3]


def test_bfloat16_becomes_float32():
    metrics = {"a": Both(jnp.full(3, 0.5, jnp.bfloat16), jnp.ones(3, jnp.bfloat16))}
    found = merged(metrics, (metrics, jnp.ones(3)))["a"]
    assert found.total == 1.5
    assert found.kept.dtype == np.float32


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Both(jnp.ones(3), jnp.ones(4)), r"`total` of Both has shape \[3\] for a batch of 4"),
        (Both(jnp.ones(4), jnp.float32(1)), r"`kept` of Both has shape \[\] for a batch of 4. .* each example\.$"),
        (Both(jnp.ones(4), jnp.ones(4), ["m"]), r"`unit` of Both is a list. A field that is not annotated"),
        (Sum(jnp.ones(4, complex)), r"metric 'a' holds an array complex64\[4\], allowed are real numbers"),
        (Mean(jnp.ones((4, 2)), jnp.ones((4, 2))), r"has total \[4, 2\] and weight \[4, 2\]"),
        (jnp.ones(4), r"metric 'a' is an array float32\[4\]. Return Mean.of\(values\)"),
    ],
)
def test_wrong_metrics_are_named(metric, text):
    with pytest.raises(TaskError, match=rf"^T.evaluate: metric 'a'.*{text}|^T.evaluate: {text}"):
        check_metrics({"a": metric}, 4, "T.evaluate")


def test_collected_fields_are_refused_where_only_sums_are_allowed():
    with pytest.raises(TaskError, match=r"T.loss: metric 'a' collects `kept` of all examples, which only evaluations"):
        check_metrics({"a": Both(jnp.ones(4), jnp.ones(4))}, 4, "T.loss", collect=False)
    assert check_metrics({"a": Both(jnp.ones(4), jnp.ones(4))}, 4, "T.evaluate")
    assert not check_metrics({"a": Both(jnp.float32(1), jnp.ones(4))}, 4, "T.evaluate")
