"""Codes, scales, ranges and the gradient of rounding, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.quantization import rounding

WEIGHT = np.array([[1.0, -0.5], [-4.0, 0.25], [0.6, 0.0]], np.float32)


def test_codes_and_scales_by_hand():
    codes, scale = rounding.encoded(jnp.asarray(WEIGHT), (0,), 8, False)
    np.testing.assert_allclose(scale, [[4 / 127, 0.5 / 127]], rtol=1e-6)
    assert codes.dtype == jnp.int8 and codes.tolist() == [[32, -127], [-127, 64], [19, 0]]
    codes, scale = rounding.encoded(jnp.asarray(WEIGHT), (0,), 3, False)
    assert codes.tolist() == [[1, -3], [-3, 2], [0, 0]] and scale.ravel().tolist() == pytest.approx([4 / 3, 0.5 / 3])


def test_channel_of_zeros_has_a_finite_scale():
    codes, scale = rounding.encoded(jnp.zeros((3, 2)), (0,), 8, False)
    assert not codes.any() and np.isfinite(scale).all()


def test_best_scale_clips_a_single_large_value():
    weight = jnp.asarray([0.9, 1.0, -1.0, 1.1] * 64 + [4.0])[:, None]
    errors = []
    for best in (False, True):
        codes, scale = rounding.encoded(weight, (0,), 3, best)
        errors.append(float(jnp.square(codes * scale - weight).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_percentile_is_the_edge_of_the_part_that_holds_it():
    counts = np.array([90, 9, 0, 1])  # 99 % are below half of the range
    assert rounding.percentile_range(counts, 8.0, 50) == 2
    assert rounding.percentile_range(counts, 8.0, 99) == 4
    assert rounding.percentile_range(counts, 8.0, 99.9) == 8


def test_best_range_ignores_a_rare_value_and_keeps_a_frequent_one():
    rare = np.zeros(2048, np.int64)
    rare[:800], rare[-1] = 1000, 1
    assert rounding.best_range(rare, 1.0, 4) < 0.5
    rare[-1] = 10**6
    assert rounding.best_range(rare, 1.0, 4) > 0.9


def test_gradient_of_rounding_passes_within_the_range_alone():
    x = jnp.asarray([-9.0, -2.6, 0.2, 3.4, 3.6])
    value, gradient = jax.value_and_grad(lambda x: rounding.fake_quantized(x, jnp.float32(1), 3).sum())(x)
    assert gradient.tolist() == [0, 1, 1, 1, 0]
    assert rounding.fake_quantized(x, jnp.float32(1), 3).tolist() == [-3, -3, 0, 3, 3] and value == 0
    assert rounding.fake_quantized(x.astype(jnp.bfloat16), jnp.float32(1), 3).dtype == jnp.bfloat16


def test_scale_has_no_gradient():
    gradient = jax.grad(lambda scale: rounding.fake_quantized(jnp.ones(3), scale, 3).sum())(jnp.float32(0.3))
    assert gradient == 0
