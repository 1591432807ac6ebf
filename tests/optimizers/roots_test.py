"""Shampoo: the formula of the paper, and the same result on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.config.schema import MeshSpec
from engine.optimizers.roots import inverse_root, shampoo
from tests.optimizers.cases import MATRICES, Run, matrices


def power(x, exponent):
    values, vectors = np.linalg.eigh(x)
    return (vectors * values**exponent) @ vectors.T


@pytest.mark.parametrize("largest", [10, 6, 1])
def test_update_is_that_of_the_paper(largest):
    """In numpy, in float64, with roots of every second step; sides above `largest` have no factor."""
    rng = np.random.default_rng(0)
    shape, sides = (6, 10), [n for n in (6, 10) if n <= largest]
    tx = shampoo(0.1, momentum=0.8, eps=0.5, weight_decay=0.02, frequency=2, largest=largest)
    expected = rng.normal(size=shape)
    params: Any = {"x": jnp.asarray(expected, jnp.float32)}
    state, update = tx.init(params), jax.jit(tx.update)
    left, right, roots, momentum = 0.5 * np.eye(6), 0.5 * np.eye(10), [np.eye(6), np.eye(10)], np.zeros(shape)
    for step in range(5):
        g = rng.normal(size=shape)
        updates, state = update({"x": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        left, right = left + g @ g.T, right + g.T @ g
        if step % 2 == 0 and sides:
            exponent = -1 / (2 * len(sides))
            roots = [power(x, exponent) if len(x) in sides else np.eye(len(x)) for x in (left, right)]
        momentum = 0.8 * momentum + roots[0] @ g @ roots[1]
        expected = (1 - 0.1 * 0.02) * expected - 0.1 * momentum
    np.testing.assert_allclose(params["x"], expected, atol=1e-5)


def test_root_of_padding_is_finite():
    factor = jnp.stack([jnp.zeros((3, 3)), jnp.diag(jnp.array([0.0, 4.0, 16.0]))])
    found = inverse_root(2)(factor)
    np.testing.assert_allclose(np.diagonal(found[1])[1:], [0.5, 0.25], rtol=1e-5)
    assert np.isfinite(found).all()


def test_parameters_on_a_mesh_are_those_of_one_device():
    def tx():
        return shampoo(0.01, eps=0.1, frequency=2, matrices=matrices)

    one, found = Run(tx()).train(3), Run(tx(), MeshSpec(fsdp=4, tensor=2)).train(3)
    for path in MATRICES:
        np.testing.assert_allclose(found[path], one[path], rtol=0, atol=1e-5, err_msg=path)
