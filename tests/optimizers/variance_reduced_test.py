"""MARS: the authors' formula for each matrix, and AdamW for other parameters."""

from typing import Any

import jax
import numpy as np
import optax

from engine.optimizers.variance_reduced import mars
from tests.optimizers.cases import MATRICES, SHAPES, arrays, matrices


def test_update_is_that_of_the_authors_for_each_matrix_of_a_stack():
    """In numpy, in float64, with gradients of which some have a norm below 1."""
    tx = mars(optax.constant_schedule(0.1), b1=0.8, b2=0.9, gamma=0.3, weight_decay=0.02, matrices=matrices)
    params: Any = arrays(0)
    state, update = tx.init(params), jax.jit(tx.update)
    expected = {path: x.astype(np.float64) for path, x in params.items()}
    zeros: Any = [{path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(3)]
    mu, nu, last = zeros
    limited = []
    for step in (1, 2, 3):
        grads = {path: (0.02 * step * g).astype(np.float32) for path, g in arrays(step).items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for path, g in grads.items():
            c, (b1, b2) = g.astype(np.float64), (0.9, 0.95)
            if path in MATRICES:
                b1, b2 = 0.8, 0.9
                c = c + 0.3 * 0.8 / 0.2 * (c - last[path])
                axes = tuple(np.ravel([*MATRICES[path]]).tolist()) if path != "blocks/query" else (1, 2, 3)
                norm = np.sqrt((c**2).sum(axes, keepdims=True))
                limited += (norm > 1).ravel().tolist()
                c = np.where(norm > 1, c / norm, c)
            mu[path] = b1 * mu[path] + (1 - b1) * c
            nu[path] = b2 * nu[path] + (1 - b2) * c**2
            direction = mu[path] / (1 - b1**step) / (np.sqrt(nu[path] / (1 - b2**step)) + 1e-8)
            expected[path] = (1 - 0.1 * 0.02) * expected[path] - 0.1 * direction
            last[path] = g
    assert 0 < sum(limited) < len(limited)
    for path in SHAPES:
        np.testing.assert_allclose(params[path], expected[path], atol=1e-5, err_msg=path)
