"""Metrics as (sum, weight): merging of ragged parts, padding, and the division."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.metrics.distribution import Quantiles
from engine.metrics.mean import Mean, Ratio, RootMeanSquare, Sum, divide, reduce_mean
from engine.metrics.state import check_metrics
from tests.merging import results


def test_mean_sums_each_example_with_its_weights():
    values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    mean = Mean.of(values, where=jnp.array([[1, 0], [1, 1]]))
    assert mean.total.tolist() == [1, 7]
    assert mean.weight.tolist() == [1, 2]


def test_mask_per_example_applies_to_all_its_values():
    mean = Mean.of(jnp.ones((2, 3)), where=jnp.array([True, False]))
    assert mean.total.tolist() == [3, 0]
    assert mean.weight.tolist() == [3, 0]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)])
def test_mask_of_another_shape_is_an_error(shape):
    for metric in (Mean, Quantiles):
        name = f"{metric.__name__}.of: found the mask or weights"
        text = rf"^{name} of shape \[{shape[0]}.*\] for values of shape \[2, 3\]. Allowed"
        with pytest.raises(TaskError, match=text):
            metric.of(jnp.ones((2, 3)), jnp.ones(shape))


def test_fractional_weights_scale_their_values():
    mean = Mean.of(jnp.array([[2.0, 4.0]]), where=jnp.array([[0.5, 3.0]]))
    assert (mean.total.tolist(), mean.weight.tolist()) == ([13], [3.5])


def test_values_of_weight_zero_are_ignored():
    mean = Mean.of(jnp.array([1.0, jnp.nan]), where=jnp.array([1, 0]))
    assert reduce_mean(mean).tolist() == [1, 1]


def test_padded_rows_are_left_out_even_if_nan():
    mean = Mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.ones(3))
    assert reduce_mean(mean, jnp.array([1.0, 1.0, 0.0])).tolist() == [3, 2]


def test_ragged_parts_merge_to_the_mean_of_the_whole():
    values = np.arange(7, dtype=np.float32) ** 2
    parts = [Mean.of(jnp.asarray(values[:4])), Mean.of(jnp.asarray(values[4:]))]
    assert float(divide(reduce_mean(parts[0]) + reduce_mean(parts[1]))) == values.mean()


def test_division_by_zero_weight_gives_zero():
    assert float(divide(jnp.array([0.0, 0.0]))) == 0


def test_check_metrics_accepts_scalars_and_rejects_other_shapes():
    with pytest.raises(TaskError, match=r"^Mean.of needs at least one value for each example, .*, found a scalar."):
        Mean.of(jnp.float32(1))
    assert check_metrics({"a": Mean.of(jnp.ones(4))}, 4, "Task.evaluate")
    scalar = Mean(jnp.float32(1), jnp.float32(2))
    assert not check_metrics({"a": scalar}, 4, "Task.evaluate")
    assert not check_metrics({"a": scalar, "b": Mean.of(jnp.ones(4))}, 4, "Task.evaluate")
    with pytest.raises(TaskError, match=r"Task.evaluate: metric 'a' has total \[4, 2\] and weight \[4, 2\]"):
        check_metrics({"a": Mean(jnp.ones((4, 2)), jnp.ones((4, 2)))}, 4, "Task.evaluate")


def test_functions_of_sums_equal_numpy():
    values, where = np.array([[1.0, 2], [3, np.nan], [5, 6]]), np.array([[1, 1], [1, 0], [1, 1]])
    kept = values[where > 0]
    assert results(Mean.of(values, where), 2)["m"] == kept.mean()
    assert results(Sum.of(values, where), 2)["m"] == kept.sum()
    assert results(RootMeanSquare.of(values, where), 2)["m"] == pytest.approx(np.sqrt(np.mean(kept**2)))
    assert results(Ratio.of(values, values**2, where), 2)["m"] == kept.sum() / (kept**2).sum()
    assert np.isnan(results(Ratio.of(values, values, where * 0))["m"])
