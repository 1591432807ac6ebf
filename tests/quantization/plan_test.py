"""The arrays of a quantized function, and its products in each form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.quantization.layers import layers_of
from engine.quantization.plan import Plan, scheme_of
from tests.quantization import functions

RANGES = {"first": np.float32(4), "second": np.float32(20)}


def plan(scheme="int8", function=functions.dense, weights=functions.DENSE, batch=None, bits=8):
    layers = layers_of(function, weights, functions.batches(1)[0] if batch is None else batch)
    return Plan(scheme_of(scheme), "max", bits, list(layers.values()))


def stored(found, weights=functions.DENSE, ranges=RANGES):
    return found.stored({name: jnp.asarray(x) for name, x in weights.items()}, ranges)


def test_stored_arrays_by_hand():
    found = stored(plan())
    assert sorted(found) == [
        *("bias", "first", "first_input_scale", "first_scale", "second", "second_input_scale", "second_scale")
    ]
    kernel = functions.DENSE["first"]
    scale = np.abs(kernel).max(0, keepdims=True) / np.float32(127)
    np.testing.assert_allclose(found["first_scale"], scale, rtol=1e-6)
    np.testing.assert_array_equal(found["first"], np.round(kernel / scale).astype(np.int8))
    assert found["first_input_scale"] == np.float32(4) / 127 and found["bias"].dtype == jnp.float32


def test_result_by_hand():
    found, x = plan(), functions.batches(1)[0]["x"]
    arrays = jax.device_get(stored(found))
    for name in ("first", "second"):
        codes = np.clip(np.round(x / arrays[f"{name}_input_scale"]), -127, 127).astype(np.int32)
        total = codes @ arrays[name].astype(np.int32)
        x = total * (arrays[f"{name}_input_scale"] * arrays[f"{name}_scale"])
        x = np.maximum(x, 0) if name == "first" else x + arrays["bias"]
    call = jax.jit(found.function(functions.dense, functions.DENSE))
    np.testing.assert_allclose(call(arrays, functions.batches(1)[0])["y"], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "weights", "batch", "ranges"),
    [
        (functions.dense, functions.DENSE, functions.batches(1)[0], RANGES),
        (functions.stack, functions.STACK, functions.batches(1)[0], {"layers": np.array([4, 4, 5], np.float32)}),
        (functions.convolution, functions.CONVOLUTION, functions.IMAGES[0], {"conv": 4.0, "grouped": 60.0}),
    ],
)
def test_integer_products_equal_those_of_rounded_floats(function, weights, batch, ranges):
    found = plan("int8", function, weights, batch)
    arrays = stored(found, weights, ranges)
    results = [jax.jit(found.function(function, weights, form))(arrays, batch)["y"] for form in ("integer", "qdq")]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5 * float(jnp.abs(results[0]).max()))
    text = str(jax.make_jaxpr(found.function(function, weights))(arrays, batch))
    assert text.count("preferred_element_type=int32") == sum(layer.products for layer in found.layers)
    exact = function(weights, batch)["y"]
    assert 0 < jnp.abs(results[0] - exact).mean() < 0.05 * jnp.abs(exact).mean()


def test_sum_that_may_not_fit_into_int32_is_one_of_floats():
    weights = {"w": np.ones((140_000, 2), np.float32)}

    def function(w, x):
        return x @ w["w"]

    x = np.ones((1, 140_000), np.float32)
    found = Plan(scheme_of("int8"), "max", 8, list(layers_of(function, weights, x).values()))
    arrays = stored(found, weights, {"w": np.float32(1)})
    np.testing.assert_allclose(found.function(function, weights)(arrays, x), 140_000, rtol=1e-3)


def test_weights_alone_are_rounded_once():
    found = plan("int8-weights", bits=4)
    arrays = stored(found)
    assert sorted(arrays) == ["bias", "first", "first_scale", "second", "second_scale"]
    assert jnp.abs(arrays["first"]).max() == 7
    floats = {name: arrays[name] * arrays[f"{name}_scale"] for name in ("first", "second")} | {"bias": arrays["bias"]}
    batch = functions.batches(1)[0]
    result = found.function(functions.dense, functions.DENSE)(arrays, batch)["y"]
    np.testing.assert_allclose(result, functions.dense(floats, batch)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scheme", "dtype"), [("fp16", jnp.float16), ("bf16", jnp.bfloat16)])
def test_16_bit_products_are_summed_as_float32(scheme, dtype):
    found, batch = plan(scheme), functions.batches(1)[0]
    arrays = stored(found)
    assert {name: x.dtype for name, x in arrays.items()} == {"first": dtype, "second": dtype, "bias": jnp.float32}
    result = found.function(functions.dense, functions.DENSE)(arrays, batch)["y"]
    exact = functions.dense(functions.DENSE, batch)["y"]
    assert 0 < jnp.abs(result - exact).max() < 0.02 * jnp.abs(exact).max() and result.dtype == jnp.float32
    large = {"x": np.full((1, 8), 1e30, np.float32)}
    assert jnp.isfinite(found.function(functions.dense, functions.DENSE)(arrays, large)["y"]).all()


def test_plan_is_read_back_from_json():
    found = plan("int8", functions.stack, functions.STACK).keeping([])
    assert Plan.from_json(json.loads(json.dumps(found.to_json()))) == found
    kept = plan("bf16").keeping(["first"])
    read = Plan.from_json(json.loads(json.dumps(kept.to_json())))
    assert read.layers == kept.layers and read.kept == ("first",) and stored(read)["first"].dtype == jnp.float32


def test_name_of_a_scale_that_is_taken_is_refused():
    weights = {**functions.DENSE, "first_scale": np.ones(1, np.float32)}
    with pytest.raises(ConfigError, match=r"the model has 'first_scale', which would name a scale\. Keep first\."):
        stored(plan(), weights)


def test_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"quantize = 'int9': unknown. Did you mean int8.*Allowed: int8, int8-w"):
        scheme_of("int9")
