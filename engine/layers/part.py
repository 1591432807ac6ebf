"""Attention to a part of the keys, with the log-sum-exp of the scores, by the kernel of a platform.

Ring attention merges the results of all parts. Splash attention returns the log-sum-exp in float32. cuDNN, by the
public function of JAX, returns it in the dtype of the result: an error of 3 % in bfloat16, so the forward kernel runs
in float16. Arrays are grouped as in `blockwise.py`, which is used where no kernel fits.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from engine.base.types import PyTree
from engine.layers import blockwise, kernels
from engine.layers.blockwise import RowStatistics, Segments

type Kernel = Callable[..., tuple[jax.Array, jax.Array]]
"""`(q, k, v, segments, causal=, statistics=) -> (result, log-sum-exp)` of q `[batch, heads, time, head_dim]` and keys
`[batch, kv_heads, time, head_dim]`. The result is differentiable if `statistics` is False, and then alone."""


def kernel(platform: str, q: jax.Array, k: jax.Array) -> Kernel | None:
    """Returns the kernel of a platform for grouped queries and keys; None if it has none for their shapes and dtype."""
    lengths = q.shape[3], k.shape[2]
    if platform == "tpu" and not any(n % kernels.SPLASH_LANES for n in lengths):
        return splash
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[4] <= kernels.CUDNN_HEAD_DIM and q.shape[4] % 8 == 0
    return cudnn if platform == "gpu" and fits and not any(n % 2 for n in lengths) else None


def forward(
    with_kernel: Kernel | None, q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments, *, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns what `blockwise.forward` does."""
    if with_kernel is None:
        return blockwise.forward(q, k, v, segments, causal=causal)
    out, lse = with_kernel(_heads(q), k, v, segments, causal=causal, statistics=True)
    return out.reshape(q.shape).astype(jnp.float32), lse.reshape(*q.shape[:4], 1)


def backward(
    with_kernel: Kernel | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: Segments,
    rows: RowStatistics,
    *,
    causal: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what `blockwise.backward` does.

    With P the softmax over this part of the keys and w the share of this part, the gradient of the scores is
    `w P (d_out v - delta)`. The kernel's own gradient for `w d_out` has the delta of this part instead. The rest is
    `c P` for a number c of each row. It adds `c P k` to the gradient of q and `P c q` to that of k, which are the
    result and the gradient of attention with the keys as values.
    """
    if with_kernel is None:
        return blockwise.backward(q, k, v, segments, rows, causal=causal)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return with_kernel(_heads(q), k, v, segments, causal=causal, statistics=False)[0].reshape(q.shape)

    scale = 1 / math.sqrt(q.shape[-1])
    _, own_lse = forward(with_kernel, q, k, v, segments, causal=causal)
    out, pullback = jax.vjp(attend, q, k, v)
    share = jnp.exp(own_lse - rows.lse)
    d_part = (share * rows.d_out.astype(jnp.float32)).astype(out.dtype)
    c = blockwise.delta(out, d_part) - share * rows.delta
    mean_key, pullback_of_keys = jax.vjp(functools.partial(attend, q, k), k)
    (dk_rest,) = pullback_of_keys((c * q.astype(jnp.float32)).astype(out.dtype))
    dq, dk, dv = (x.astype(jnp.float32) for x in pullback(d_part))
    return dq + scale * c * mean_key.astype(jnp.float32), dk + scale * dk_rest.astype(jnp.float32), dv


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: Segments,
    *,
    causal: bool,
    statistics: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns the attention of a `Kernel` by splash attention; `interpret` runs it without a TPU, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # takes 0.3 s, and only TPUs need it

    (heads, queries), keys = q.shape[1:3], k.shape[2]
    attend = kernels.splash_kernel(heads, queries, keys, causal=causal, save_residuals=statistics, interpret=interpret)
    ids = None if segments is None else pallas.SegmentIds(*segments)
    found: PyTree = jax.vmap(attend)(kernels.splash_queries(q), k, v, ids)
    return (found[0], found[1][0]) if statistics else (found, jnp.zeros(()))


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: Segments,
    *,
    causal: bool,
    statistics: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> tuple[jax.Array, jax.Array]:
    """Returns the attention of a `Kernel` by cuDNN.

    Args as in `Kernel`, and:
        implementation: "xla" does the same without a GPU, with statistics in float32.
    """
    mask = None if segments is None else (segments[0][:, :, None] == segments[1][:, None, :])[:, None]
    q, k, v = (blockwise.swap(x) for x in (q, k, v))
    attend = jax.nn.dot_product_attention
    if not statistics:
        out = attend(q, k, v, mask=mask, is_causal=causal, implementation=implementation)
        return blockwise.swap(out), jnp.zeros(())
    narrow = jnp.float16 if implementation == "cudnn" else jnp.float32
    q, k, v = (x.astype(narrow) for x in (q, k, v))
    out, lse = attend(q, k, v, mask=mask, is_causal=causal, implementation=implementation, return_residual=True)
    return blockwise.swap(out), lse.astype(jnp.float32).transpose(0, 2, 1)


def _heads(q: jax.Array) -> jax.Array:
    """Returns grouped queries as `[batch, heads, time, head_dim]`."""
    return q.reshape(q.shape[0], -1, *q.shape[3:])
