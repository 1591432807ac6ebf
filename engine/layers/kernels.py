"""Attention on the arrays of one device, by the kernel of its platform.

GPUs use cuDNN's flash attention and TPUs the splash attention of Pallas. CPUs, and shapes or dtypes that no kernel
supports, use `blockwise.py`. `specs` and `divide_heads` prepare a call under `jax.shard_map`.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from engine.layers import blockwise
from engine.parallel.layout import Layout
from engine.types import PyTree

CUDNN_HEAD_DIM = 128
"""Largest head size that cuDNN's kernel supports on all of its GPUs."""
SPLASH_LANES = 128
"""Blocks of a splash kernel are multiples of a TPU's lanes."""
SPLASH_BLOCKS = (512, 256, SPLASH_LANES)


def attend(
    platform: str, q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None
) -> jax.Array:
    """Returns attention on one device, as `attention.attention` does.

    Args:
        platform: cpu, gpu or tpu.
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`.
        v: shape of `k`.
        causal: whether a position attends only to itself and earlier positions.
        segment_ids: `[batch, time]` or None.
    """
    if platform == "gpu" and cudnn_takes(q):
        return cudnn(q, k, v, causal=causal, segment_ids=segment_ids)
    if platform == "tpu" and q.shape[1] % SPLASH_LANES == 0:
        return splash(q, k, v, causal=causal, segment_ids=segment_ids)
    return blockwise.attention(q, k, v, causal=causal, segment_ids=segment_ids)


def cudnn_takes(q: jax.Array) -> bool:
    """Returns whether cuDNN has a kernel: for 16-bit floats, head sizes 8, 16, ... 128, and an even length.

    The forward kernel also supports odd lengths without a mask, but its gradient does not.
    """
    _, time, _, head_dim = q.shape
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head_dim <= CUDNN_HEAD_DIM and head_dim % 8 == 0
    return fits and time % 2 == 0


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None) -> jax.Array:
    """Returns attention by cuDNN. Segments become a mask `[batch, 1, time, time]`, which is held in memory."""
    mask = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    segment_ids: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention by the splash kernel of Pallas for TPU, which skips fully masked blocks.

    The kernel does not scale the scores, so the queries are scaled before, which rounds them once more.

    Args as in `attend`, and:
        interpret: run without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # takes 0.3 s, and only TPUs need it

    time, heads, head_dim = q.shape[1:]
    size = next(n for n in SPLASH_BLOCKS if time % n == 0)
    sizes = pallas.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    mask = (pallas.CausalMask if causal else pallas.FullMask)((time, time))
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )
    q = (q.astype(jnp.float32) / math.sqrt(head_dim)).astype(q.dtype)
    segments = None if segment_ids is None else pallas.SegmentIds(q=segment_ids, kv=segment_ids)
    out: PyTree = jax.vmap(kernel)(*(blockwise.swap(x) for x in (q, k, v)), segments)
    return blockwise.swap(out)


def specs(here: Layout, q: jax.Array, time_axis: str | None = None) -> tuple[PartitionSpec, PartitionSpec, int]:
    """Returns how arrays are split for a kernel under `jax.shard_map`.

    Args:
        here: the active layout.
        q: `[batch, time, heads, head_dim]`.
        time_axis: the mesh axis of the time dimension.

    Returns:
        The PartitionSpec of q, k, v and the result, the PartitionSpec of segment ids, and the number of parts of the
        heads.
    """
    batch, _, heads, _ = here.spec(("batch", None, "heads", None), q.shape)
    axes = () if heads is None else (heads,) if isinstance(heads, str) else heads
    parts = math.prod(here.size(axis) for axis in axes)
    return PartitionSpec(batch, time_axis, heads, None), PartitionSpec(batch, time_axis), parts


def divide_heads(k: jax.Array, parts: int) -> jax.Array:
    """Repeats the heads of `[batch, time, kv_heads, head_dim]` as rarely as possible so that `parts` divides them.

    The number of query heads must be a multiple of `parts` and of `kv_heads`. Then part i of the queries uses part i of
    the result.
    """
    return jnp.repeat(k, math.lcm(k.shape[2], parts) // k.shape[2], axis=2)
