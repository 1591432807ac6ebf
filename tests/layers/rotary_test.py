"""Rotary positions: attention scores depend only on distances."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.layers import RotaryScaling, rotary_angles, rotate
from engine.parallel.layout import Layout, active
from tests.layers.blocks import LikeTpu

Q, K = (jax.random.normal(jax.random.key(i), (1, 6, 2, 8)) for i in range(2))


def scores(positions):
    angles = rotary_angles(positions, 8)
    return jnp.einsum("bqhd,bkhd->bhqk", rotate(Q, angles), rotate(K, angles))


def test_shifting_all_positions_keeps_the_scores():
    positions = jnp.arange(6)[None]
    np.testing.assert_allclose(scores(positions), scores(positions + 100), atol=1e-4)
    assert not np.allclose(scores(positions), scores(positions * 2), atol=1e-2)


def test_position_zero_is_unchanged_and_norms_are_kept():
    angles = rotary_angles(jnp.zeros((1, 6), jnp.int32), 8)
    np.testing.assert_allclose(rotate(Q, angles), Q, atol=1e-6)
    rotated = rotate(Q, rotary_angles(jnp.arange(6)[None], 8))
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(Q, axis=-1), rtol=1e-5)


def test_dtype_is_kept_and_odd_head_size_raises_task_error():
    assert rotate(Q.astype(jnp.bfloat16), rotary_angles(jnp.arange(6)[None], 8)).dtype == jnp.bfloat16
    with pytest.raises(TaskError, match="head_dim = 7 is odd"):
        rotary_angles(jnp.arange(6)[None], 7)


def test_scaling_divides_slow_rotations_and_keeps_fast_ones():
    """Of a row of 64 positions; the factors are those of Llama 3.1 for its number of turns."""
    scaling = RotaryScaling(4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    frequencies = jnp.array([8, 4, 2.5, 1, 0.5]) * 2 * jnp.pi / 64
    found = scaling.scaled(frequencies)
    np.testing.assert_allclose(found, frequencies * jnp.array([1, 1, 0.625, 0.25, 0.25]), rtol=1e-6)
    cos, sin = rotary_angles(jnp.ones((1, 1)), 8, 100.0, scaling)
    frequencies = 100.0 ** -jnp.arange(0, 1, 0.25)
    np.testing.assert_allclose(jnp.arctan2(sin, cos)[0, 0], scaling.scaled(frequencies), rtol=1e-5)


@pytest.mark.parametrize("numbers", [{"factor": 0.0}, {"low_freq_factor": 4.0}, {"low_freq_factor": 0.0}])
def test_scaling_with_other_numbers_raises_task_error(numbers):
    with pytest.raises(TaskError, match="allowed are a factor above 0, and 0 < low_freq_factor < high_freq_factor"):
        RotaryScaling(**numbers)


def test_angles_are_computed_once_for_all_layers():
    def layers(x, positions):
        angles = rotary_angles(positions, 8)
        for _ in range(3):
            x = jnp.tanh(jax.nn.softmax(rotate(x, angles), axis=1))
        return x.sum()

    program = str(jax.jit(jax.grad(layers)).lower(Q, jnp.arange(6)[None]).compile().as_text())
    assert program.count("cosine(") == 1


def rotated(layout, x, angles, d_y):
    """Returns the rotated `x`, the gradients of `x` and the angles, and the traced program."""

    def function(x, angles):
        with active(layout()):
            y, pullback = jax.vjp(rotate, x, angles)
            return y, pullback(d_y)

    return jax.jit(function)(x, angles), str(jax.make_jaxpr(function)(x, angles))


X, D_Y = (jax.random.normal(jax.random.key(i), (1, 6, 2, 16)) for i in (2, 3))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_tpu_rotates_by_an_exact_product_to_the_same_values_and_gradients(dtype):
    x, d_y, angles = X.astype(dtype), D_Y.astype(dtype), rotary_angles(jnp.arange(6)[None] + 1000, 16)
    found, program = rotated(LikeTpu, x, angles, d_y)
    wanted, plain = rotated(Layout, x, angles, d_y)
    products = re.findall("dot_general.*?preferred_element_type", program, re.DOTALL)
    assert len(products) == 2 and "dot_general" not in plain
    assert all(("HIGHEST" in product) == (dtype == jnp.float32) for product in products)
    tolerance = 2**-8 if dtype == jnp.bfloat16 else 1e-6
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), tolerance, tolerance)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float16, 16), (jnp.bfloat16, 8), (jnp.bfloat16, 512)])
def test_a_tpu_slices_heads_whose_product_was_not_measured(dtype, size):
    x = jnp.ones((1, 2, 1, size), dtype)
    assert "dot_general" not in rotated(LikeTpu, x, rotary_angles(jnp.arange(2)[None], size), x)[1]


def test_gradient_of_the_product_keeps_its_input_only_for_angles_that_have_a_gradient():
    x, angles = X.astype(jnp.bfloat16), rotary_angles(jnp.arange(6)[None], 16)
    with active(LikeTpu()):
        _, of_x = jax.vjp(lambda x: rotate(x, angles), x)
        _, of_angles = jax.vjp(lambda angles: rotate(x, angles), angles)
    assert x.shape not in [leaf.shape for leaf in jax.tree.leaves(of_x)]
    assert x.shape in [leaf.shape for leaf in jax.tree.leaves(of_angles)]
