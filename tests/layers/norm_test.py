"""RMSNorm: unit root mean square, computed in float32, returned in the dtype of the input."""

import jax
import jax.numpy as jnp
import numpy as np

from engine.layers import RMSNorm

X = 3 * jax.random.normal(jax.random.key(0), (2, 5, 64))


def test_root_mean_square_is_one_and_features_are_scaled():
    norm = RMSNorm(64)
    np.testing.assert_allclose(jnp.sqrt((norm(X) ** 2).mean(-1)), 1, rtol=1e-5)
    norm.scale.set_value(jnp.arange(64.0))
    np.testing.assert_allclose(norm(X), RMSNorm(64)(X) * jnp.arange(64.0), rtol=1e-6)


def test_half_precision_is_summed_in_float32():
    small = (1e-3 * X).astype(jnp.bfloat16)
    y = RMSNorm(64)(small)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, RMSNorm(64)(small.astype(jnp.float32)), rtol=1e-2, atol=1e-2)


def test_backward_pass_of_half_precision_keeps_the_input_alone():
    def kept(x):
        _, pullback = jax.vjp(RMSNorm(64), x)
        return [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.shape == x.shape]

    assert kept(X.astype(jnp.bfloat16)) == [jnp.bfloat16]
    assert jnp.float32 in kept(X)


def test_gradient_of_half_precision_is_close_to_that_of_float32():
    def gradient(x):
        return jax.grad(lambda x: jnp.sin(RMSNorm(64)(x).astype(jnp.float32)).sum())(x)

    half = X.astype(jnp.bfloat16)
    np.testing.assert_allclose(gradient(half), gradient(half.astype(jnp.float32)), rtol=2e-2, atol=1e-2)


def test_zero_input_gives_finite_output():
    assert jnp.isfinite(jax.grad(lambda x: RMSNorm(64)(x).sum())(jnp.zeros((2, 64)))).all()
