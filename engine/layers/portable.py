"""Layers in plain operations, for programs that other runtimes execute (`Layout.portable`)."""

import jax


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None) -> jax.Array:
    """Returns attention as `attention.attention` does; the batch and the time may be symbolic.

    Args:
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`.
        v: shape of `k`.
        causal: whether a position attends only to itself and earlier positions.
        segment_ids: `[batch, time]` or None.
    """
    mask = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")
