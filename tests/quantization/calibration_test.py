"""Ranges of inputs over several batches, of layers in a loop, and of shared weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.base.errors import ConfigError, DataError
from engine.quantization.calibration import BINS, input_ranges
from tests.quantization import functions

BATCHES = functions.batches(4, rows=512)


def ranges(method, function=functions.dense, weights=functions.DENSE, batches=BATCHES, names=("first", "second")):
    return input_ranges(function, weights, batches, names, method, 8)


def test_ranges_of_all_batches_by_hand():
    x = np.concatenate([batch["x"] for batch in BATCHES])
    hidden = np.maximum(x @ functions.DENSE["first"], 0)
    for method, wanted in (
        ("max", lambda x: np.abs(x).max()),
        ("percentile", lambda x: np.percentile(np.abs(x), 99.9, method="inverted_cdf")),
    ):
        found = ranges(method)
        for name, inputs in (("first", x), ("second", hidden)):
            width = np.abs(inputs).max() / BINS
            assert wanted(inputs) - 1e-5 <= found[name] <= wanted(inputs) + width + 1e-5, (method, name)
    assert 0 < ranges("mse")["first"] <= ranges("max")["first"]


def test_each_layer_of_a_stack_has_its_range():
    found = ranges("max", functions.stack, functions.STACK, names=["layers"])["layers"]
    x, wanted = np.concatenate([batch["x"] for batch in BATCHES]), []
    for kernel in functions.STACK["layers"]:
        wanted.append(np.abs(x).max())
        x = np.tanh(x @ kernel) + x
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    percentile = ranges("percentile", functions.stack, functions.STACK, names=["layers"])["layers"]
    assert percentile.shape == (3,) and (percentile < found).all()


def test_weight_used_in_a_loop_and_outside_has_one_range():
    def function(w, inputs):
        x, _ = lax.scan(lambda x, kernel: (x @ kernel, None), inputs["x"], w["layers"])
        return 100 * jnp.ones((1, 8)) @ w["layers"][0], x

    for method in ("max", "percentile"):
        found = ranges(method, function, functions.STACK, names=["layers"])["layers"]
        assert found.shape == () and found >= 1


def test_inputs_that_are_not_finite_are_refused_by_the_name_of_the_layer():
    batches = [*BATCHES, {"x": np.full((2, 8), np.inf, np.float32)}]
    with pytest.raises(DataError, match="inputs of first are infinite or no numbers"):
        ranges("max", batches=batches)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"calibration = 'percentil': unknown\. Did you mean percentile"):
        ranges("percentil")
