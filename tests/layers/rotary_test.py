"""Rotary positions: attention scores depend only on distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.layers import rotary_angles, rotate

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


def test_angles_are_computed_once_for_all_layers():
    def layers(x, positions):
        angles = rotary_angles(positions, 8)
        for _ in range(3):
            x = jnp.tanh(jax.nn.softmax(rotate(x, angles), axis=1))
        return x.sum()

    program = str(jax.jit(jax.grad(layers)).lower(Q, jnp.arange(6)[None]).compile().as_text())
    assert program.count("cosine(") == 1
