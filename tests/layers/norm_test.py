"""RMSNorm: unit root mean square, computed in float32, returned in the dtype of the input."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.layers import RMSNorm
from engine.layers.rematerialization import remat_slices
from engine.parallel.layout import active
from tests.layers.blocks import LikeTpu

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


def test_backward_pass_of_half_precision_keeps_the_input_and_the_mean_squares():
    def kept(x):
        with active(LikeTpu()):
            _, pullback = jax.vjp(RMSNorm(64), x)
        return {(leaf.shape[2:], leaf.dtype) for leaf in jax.tree.leaves(pullback) if leaf.shape[:2] == x.shape[:2]}

    assert kept(X.astype(jnp.bfloat16)) == {((64,), jnp.dtype(jnp.bfloat16)), ((1,), jnp.dtype(jnp.float32))}
    assert ((64,), jnp.dtype(jnp.float32)) in kept(X)


def test_ticks_of_a_pipeline_keep_no_float32_values_of_half_precision():
    """`remat_slices` keeps what the layers of a tick compute, but of a norm its input alone."""
    graph, params = nnx.split(RMSNorm(64))
    x = X.astype(jnp.bfloat16)
    _, pullback = jax.vjp(remat_slices(lambda x, params: jnp.sin(nnx.merge(graph, params)(jnp.sin(x)))), x, params)
    kept = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.shape == x.shape]
    assert kept and set(kept) == {jnp.dtype(jnp.bfloat16)}


def test_gradient_within_a_pipeline_has_the_same_bits():
    for dtype in (jnp.bfloat16, jnp.float32):
        found = []
        for wrap in (remat_slices, lambda function: function):
            call = wrap(lambda x: RMSNorm(64)(x))
            found.append(
                jax.jit(jax.grad(lambda x, call=call: jnp.sin(call(x).astype(jnp.float32)).sum()))(X.astype(dtype))
            )
        np.testing.assert_array_equal(*found)


def test_forward_mode_derivative_is_that_of_float32():
    x = X.astype(jnp.bfloat16)
    wanted = jax.jvp(RMSNorm(64), (x.astype(jnp.float32),), (x.astype(jnp.float32),))[1]
    np.testing.assert_allclose(jax.jvp(RMSNorm(64), (x,), (x,))[1], wanted, rtol=2e-2, atol=1e-2)


def test_gradient_of_half_precision_is_close_to_that_of_float32():
    def gradient(x):
        return jax.grad(lambda x: jnp.sin(RMSNorm(64)(x).astype(jnp.float32)).sum())(x)

    half = X.astype(jnp.bfloat16)
    np.testing.assert_allclose(gradient(half), gradient(half.astype(jnp.float32)), rtol=2e-2, atol=1e-2)


def test_zero_input_gives_finite_output():
    assert jnp.isfinite(jax.grad(lambda x: RMSNorm(64)(x).sum())(jnp.zeros((2, 64)))).all()
