"""The entropy of the weights of `engine.layers.attention`, whichever kernel computes the attention.

Kernels do not keep the weights. The entropy follows from the scores: log-sum-exp minus the mean score. It is computed
for BLOCK queries at a time, so its memory grows with the number of keys alone.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from engine.diagnosis.collect import ENTROPY, mark
from engine.layers.dot_product_attention import observed

BLOCK = 128
"""Queries whose scores are in memory at a time."""


def entropy_marked(layer: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
    """Marks ENTROPY of each attention that is traced while the block runs.

    Args:
        layer: returns the layer of an attention at that moment.
    """

    def observe(q: jax.Array, k: jax.Array, causal: bool, segment_ids: jax.Array | None) -> None:
        mark(layer(), ENTROPY, entropy(q, k, causal=causal, segment_ids=segment_ids))

    return observed(observe)


def entropy(q: jax.Array, k: jax.Array, *, causal: bool, segment_ids: jax.Array | None) -> jax.Array:
    """Returns the entropy of the weights in nats, a mean over the queries that are no padding.

    Args:
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`.
        causal, segment_ids: as for `attention`.
    """
    batch, time, heads, size = q.shape
    segments = jnp.ones((batch, time), jnp.int32) if segment_ids is None else segment_ids
    block = max(n for n in range(1, min(BLOCK, time) + 1) if time % n == 0)
    q = q.reshape(batch, time // block, block, k.shape[2], heads // k.shape[2], size).astype(jnp.float32)
    k = k.astype(jnp.float32)

    def of_block(xs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, own, positions = xs
        scores = jnp.einsum("bqkgd,btkd->bkgqt", q, k) / jnp.sqrt(size)
        allowed = own[:, :, None] == segments[:, None]
        if causal:
            allowed &= positions[:, None] >= jnp.arange(time)
        scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
        lse = jax.nn.logsumexp(scores, -1)
        weights = jnp.exp(scores - lse[..., None])
        found = lse - jnp.where(weights > 0, weights * scores, 0).sum(-1)  # [batch, kv_heads, group, block]
        return jnp.where((own > 0)[:, None, None] if segment_ids is not None else True, found, 0).sum()

    of_blocks = segments.reshape(batch, -1, block).swapaxes(0, 1)
    total = jax.lax.map(of_block, (q.swapaxes(0, 1), of_blocks, jnp.arange(time).reshape(-1, block))).sum()
    count = batch * time if segment_ids is None else (segments > 0).sum()
    return total / jnp.maximum(heads * count, 1)
