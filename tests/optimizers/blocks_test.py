"""Adam-mini: the formula of its blocks, and its state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.optimizers.blocks import adam_mini, scale_by_adam_mini
from tests.optimizers.cases import SHAPES, arrays, matrices

BLOCKS = {
    "blocks/down": (4, 1, 16),  # a neuron
    "blocks/query": (4, 1, 2, 1),  # a head
    "experts/up": (2, 2, 1, 48),
    "embedding": (32, 16),
    "one": (1, 48),
    "scale": (16,),
}


def test_second_moment_is_the_mean_of_a_block():
    tx = adam_mini(optax.constant_schedule(0.1), b1=0.8, b2=0.9, weight_decay=0.02, matrices=matrices)
    params: Any = arrays(0)
    expected = {path: x.astype(np.float64) for path, x in params.items()}
    mu = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    nu = {path: np.zeros(shape) for path, shape in BLOCKS.items()}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in (1, 2, 3):
        updates, state = update(arrays(step), state, params)
        params = optax.apply_updates(params, updates)
        for path, g in arrays(step).items():
            axes = tuple(i for i, n in enumerate(BLOCKS[path]) if n == 1)
            mu[path] = 0.8 * mu[path] + 0.2 * g
            nu[path] = 0.9 * nu[path] + 0.1 * (g.astype(np.float64) ** 2).mean(axes, keepdims=True)
            direction = mu[path] / (1 - 0.8**step) / (np.sqrt(nu[path] / (1 - 0.9**step)) + 1e-8)
            expected[path] = (1 - 0.1 * 0.02) * expected[path] - 0.1 * direction
    for path in SHAPES:
        np.testing.assert_allclose(params[path], expected[path], atol=1e-5, err_msg=path)


def test_state_has_a_number_for_each_block():
    """Half the state of Adam, and what embeddings, norms and biases need."""
    params = {path: jnp.zeros(shape, jnp.bfloat16) for path, shape in SHAPES.items()}
    state: Any = scale_by_adam_mini(matrices=matrices).init(params)
    assert {path: x.shape for path, x in state.nu.items()} == BLOCKS
    assert {x.dtype for x in state.nu.values()} == {jnp.dtype("float32")}


def test_parameters_of_another_group_stay_masked():
    groups = {path: "rest" if path in ("one", "scale") else "mine" for path in SHAPES}
    tx = optax.partition({"mine": adam_mini(0.1, matrices=matrices), "rest": optax.scale(5.0)}, groups)
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    updates: Any
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert float(updates["one"][0, 0]) == 5.0
    np.testing.assert_allclose(updates["blocks/query"], -0.1, rtol=1e-5)
    marked = optax.tree.map_params(tx, lambda _: "mine", state, transform_non_params=lambda _: "none")
    assert jax.tree.leaves(marked).count("mine") == 2 * 4
