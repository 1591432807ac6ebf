"""Layers as the count of model FLOPs sees them, such as attention without a mask, which changes no shape.

These functions are only traced (`Layout.counts_flops`). `compile/flops.py` counts half of the products inside
`convoy_causal_attention`, and `training/row_dependence.py` trusts `convoy_keeps_rows`. Both are found by their names.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """Returns an array like `q`, computed by the products of `attention.attention`.

    Args:
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`.
        v: shape of `k`.
        causal: whether half of the products counts.
    """
    return (convoy_causal_attention if causal else _products)(q, k, v)


@functools.partial(jax.jit, static_argnums=0)
def convoy_keeps_rows(function: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """Returns `function(*args)` `[batch, ...]`, each row of which depends on the same row of the arguments alone.

    A layer uses it where its program, such as a sort of the tokens of all rows, does not show that.
    """
    return function(*args)


def _products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    batch, time, heads, head_dim = q.shape
    grouped = q.reshape(batch, time, k.shape[2], heads // k.shape[2], head_dim)
    weights = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", grouped, k))
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape).astype(q.dtype)


@jax.jit
def convoy_causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns `_products`."""
    return _products(q, k, v)
