"""Layers of small models equal those of Flax, with their gradients and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.street.parts import RectifiedNorm, as_matrix, wide_linear

X = np.random.default_rng(0).normal(1, 2, (3, 4, 5, 6)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_rectified_norm_equals_batch_norm_and_relu(dtype, tolerance):
    def run(kind, rectify, dtype):
        graph, params, state = nnx.split(kind(6, momentum=0.9, rngs=nnx.Rngs(0)), nnx.Param, ...)
        params = jax.tree.map(lambda x: x + 0.3, params)

        def loss(x, params):
            module = nnx.merge(graph, params, jax.tree.map(lambda v: v, state))
            y = rectify(module(x).astype(jnp.float32))
            return (y * WEIGHT).sum(), (y, nnx.state(module, nnx.BatchStat))

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(jnp.asarray(X, dtype), params)

    found = run(RectifiedNorm, lambda y: y, dtype)
    wanted = run(nnx.BatchNorm, nnx.relu, jnp.float32)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_rectified_norm_uses_stored_statistics_in_evaluation():
    norm = RectifiedNorm(6, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.full(6, 1.0), jnp.full(6, 4.0)
    norm.eval()
    np.testing.assert_allclose(norm(jnp.asarray(X)), np.maximum((X - 1) / 2, 0), rtol=1e-4, atol=1e-5)


def test_a_wide_linear_layer_has_a_float32_result_of_products_in_half_precision():
    linear = nnx.Linear(6, 7, rngs=nnx.Rngs(0))
    graph, params = nnx.split(linear)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    x = jnp.asarray(X, jnp.bfloat16)

    def result(params, x):
        return wide_linear(nnx.merge(graph, params), x)

    found = result(half, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, result(jax.tree.map(lambda p: p.astype(jnp.float32), half), x.astype(jnp.float32)), rtol=1e-5, atol=1e-5
    )
    text = jax.jit(jax.grad(lambda p, x: (result(p, x) ** 2).sum(), argnums=(0, 1))).lower(half, x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3 and not any("xf32>," in line for line in products)


def test_kernel_that_is_made_as_a_matrix_has_the_same_values():
    init, key, shape = nnx.initializers.lecun_normal(), jax.random.key(0), (3, 3, 2, 4)
    np.testing.assert_array_equal(as_matrix(init)(key, shape), init(key, shape))
