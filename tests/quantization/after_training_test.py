"""`quantize`: a function in fewer bits computes nearly the same, and says what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from engine.base.errors import ConfigError
from engine.quantization import quantize
from tests.quantization import functions

BATCHES = functions.batches(2, rows=64)


@pytest.mark.parametrize("calibration", ["percentile", "mse", "max"])
def test_quantized_stack_is_close_and_has_an_input_scale_for_each_layer(calibration):
    found = quantize(functions.stack, functions.STACK, BATCHES, calibration=calibration)
    exact = functions.stack(functions.STACK, BATCHES[0])["y"]
    error = jnp.abs(jax.jit(found.function)(found.weights, BATCHES[0])["y"] - exact)
    assert 0 < error.mean() < 0.02 * jnp.abs(exact).mean()
    assert {name: (x.shape, x.dtype.name) for name, x in found.weights.items()} == {
        "layers": ((3, 8, 8), "int8"),
        "layers_scale": ((3, 1, 8), "float32"),
        "layers_input_scale": ((3,), "float32"),
    }


def test_squared_error_chooses_the_ranges_of_weights_too():
    by = {
        name: quantize(functions.dense, functions.DENSE, BATCHES, calibration=name, bits=3) for name in ("max", "mse")
    }
    errors = {
        name: np.square(x.weights["first"] * x.weights["first_scale"] - functions.DENSE["first"]).sum()
        for name, x in by.items()
    }
    assert errors["mse"] < errors["max"]


def test_other_matrices_are_stored_in_16_bits_too():
    def function(w, inputs):
        return {"y": inputs["x"] @ w["kernel"] + w["table"][0]}

    weights = functions.arrays(kernel=(8, 4), table=(5, 4))
    found = quantize(function, weights, BATCHES, "bf16")
    assert [(layer.name, layer.products) for layer in found.plan.layers] == [("kernel", 1), ("table", 0)]
    assert {x.dtype.name for x in found.weights.values()} == {"bfloat16"}
    assert quantize(function, weights, BATCHES, "int8-weights").weights["table"].dtype == np.float32


def test_function_is_exported_with_a_symbolic_batch():
    found = quantize(functions.dense, functions.DENSE, BATCHES)
    [batch] = export.symbolic_shape("batch")
    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.weights.items()}
    inputs = {"x": jax.ShapeDtypeStruct((batch, 8), jnp.float32)}
    exported = export.export(jax.jit(found.function), platforms=["cpu", "cuda", "tpu"])(weights, inputs)
    assert "xi8>" in exported.mlir_module()
    result = export.deserialize(exported.serialize()).call(found.weights, BATCHES[1])["y"]
    np.testing.assert_array_equal(result, jax.jit(found.function)(found.weights, BATCHES[1])["y"])


def test_kept_layer_stays_in_floats():
    found = quantize(functions.dense, functions.DENSE, BATCHES, keep=["second"])
    assert found.weights["second"].dtype == np.float32 and found.weights["first"].dtype == np.int8
    assert found.plan.kept == ("second",) and sorted(found.input_ranges) == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(scheme="int"), "quantize = 'int': unknown"),
        (dict(calibration="mean"), "calibration = 'mean': unknown. Allowed: percentile, mse, max"),
        (dict(keep=["secnd"]), "keep = 'secnd': no such layer. Did you mean second"),
        (dict(bits=1), "bits = 1. Allowed: 2 to 8"),
        (dict(batches=[]), "no batch is given"),
        (dict(function=lambda w, x: x["x"] + w["bias"].sum()), "no product of the function has a weight"),
    ],
)
def test_wrong_arguments_are_refused(changes, text):
    arguments = dict(function=functions.dense, weights=functions.DENSE, batches=BATCHES) | changes
    with pytest.raises(ConfigError, match=text):
        quantize(**arguments)
