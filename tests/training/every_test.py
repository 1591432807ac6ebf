"""The transformation that updates in each n-th step only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.training.every import every


def test_period_one_is_the_transformation_itself():
    tx = optax.adam(0.1)
    assert every(1, tx) is tx


def test_state_and_updates_change_in_each_third_step_only():
    params = {"a": jnp.ones(3)}
    tx, plain = every(3, optax.adam(0.1)), optax.adam(0.1)
    state: Any = tx.init(params)
    expected: Any = plain.init(params)
    update = jax.jit(tx.update)
    for step in range(7):
        before, gradient = state.inner, {"a": jnp.full(3, step + 1.0)}
        updates, state = update(gradient, state, params)
        wanted: Any = {"a": jnp.zeros(3)}
        if step % 3 == 2:
            wanted, expected = plain.update(gradient, expected, params)
        else:
            jax.tree.map(np.testing.assert_array_equal, state.inner, before)
        np.testing.assert_allclose(updates["a"], wanted["a"], rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, state.inner, expected)
    assert int(state.steps) == 7
