"""Attention on the arrays of one device, by the kernel of its platform.

GPUs use cuDNN's flash attention and TPUs the splash attention of Pallas, with lengths padded as the kernel requires.
CPUs, and shapes or dtypes that no kernel supports, use `blockwise.py`. `specs` and `divide_heads` prepare a call under
`jax.shard_map`.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from engine.base.types import PyTree
from engine.layers import blockwise
from engine.layers.rematerialization import KERNEL
from engine.parallel.layout import Layout
from engine.parallel.rules import axes_of

CUDNN_HEAD_DIM = 128
"""Largest head size that cuDNN's kernel supports on all of its GPUs."""
SPLASH_LANES = 128
"""Blocks of a splash kernel are multiples of a TPU's lanes."""
SPLASH_BLOCKS = (512, 256, SPLASH_LANES)
"""Sizes of blocks, the preferred one first. For causal attention with its gradient (2 rows, 2,048 positions, 16 heads
of 128, on a v5e), the longer of products and memory traffic of each kernel is 1.47 M cycles with 512, and 1.77 M with
1,024, whose half-masked blocks are larger. 2,048 exceeds the memory of the kernel. 256 has 1.37 M, in four times as
many steps, whose overhead is unknown. The fused backward kernel saves 0.33 M in products, but XLA estimates 1.24 M for
the sum of its parts of the gradient of the queries (0.76 M with 1,024, which saves 0.16 M)."""
SPLASH_PADDED = 1.5
"""Largest ratio of padded to given length for splash. XLA's estimates for a v5e, forward and backward, 64 rows and 12
heads of 64: 196 positions take 5.8 M cycles with padding and 8.4 M in plain XLA, 98 take 2.6 M and 2.1 M, 49 take 2.4 M
and 1.1 M."""


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
    if platform == "tpu" and splash_takes(q):
        return splash(q, k, v, causal=causal, segment_ids=segment_ids)
    return blockwise.attention(q, k, v, causal=causal, segment_ids=segment_ids)


def cudnn_takes(q: jax.Array) -> bool:
    """Returns whether cuDNN has a kernel: for 16-bit floats and head sizes 8, 16, ... 128."""
    head_dim = q.shape[3]
    return q.dtype in (jnp.bfloat16, jnp.float16) and head_dim <= CUDNN_HEAD_DIM and head_dim % 8 == 0


def splash_takes(q: jax.Array) -> bool:
    """Returns whether splash is faster than plain XLA, although it computes padding up to a multiple of the lanes."""
    time = q.shape[1]
    return _round_up(time, SPLASH_LANES) <= SPLASH_PADDED * time


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    segment_ids: jax.Array | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns attention by cuDNN.

    JAX has no public way to pass segments to cuDNN (`jax.nn.dot_product_attention` takes the lengths of rows, but no
    offsets), so that they become a mask `[batch, 1, time, time]`. XLA computes it once for all layers of a stack, 32
    MiB for 4 rows of 2,048. Calls for blocks of queries have smaller masks, but take more memory in all.

    The gradient supports even lengths only, so an odd length is padded by one position that is masked as a key.

    Args as in `attend`, and:
        implementation: xla computes the same formula without a GPU.
    """
    time, ids, keys, mask = q.shape[1], segment_ids, None, None
    q, k, v = (_pad(x, 2) for x in (q, k, v))
    if ids is not None:
        ids = _pad_segments(ids, 2)
        mask = (ids[:, :, None] == ids[:, None, :])[:, None]
    elif not causal and q.shape[1] > time:  # a causal mask hides the last position from all others
        keys = jnp.full(len(q), time, jnp.int32)
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=keys, implementation=implementation
    )
    return out[:, :time]


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

    The kernel does not scale the scores, so the queries are scaled before, which rounds them once more. The length is
    padded to a multiple of SPLASH_LANES, and the padding is a segment of its own.

    Args as in `attend`, and:
        interpret: run without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # takes 0.3 s, and only TPUs need it

    length, heads = q.shape[1:3]
    q, k, v = (_pad(x, SPLASH_LANES) for x in (q, k, v))
    time = q.shape[1]
    if segment_ids is None and not causal and time > length:
        segment_ids = jnp.zeros((len(q), length), jnp.int32)
    kernel = splash_kernel(heads, time, time, causal=causal, interpret=interpret, residual_checkpoint_name=KERNEL)
    ids = None if segment_ids is None else _pad_segments(segment_ids, SPLASH_LANES)
    segments = None if ids is None else pallas.SegmentIds(q=ids, kv=ids)
    out: PyTree = jax.vmap(kernel)(*(blockwise.swap(x) for x in (splash_queries(q), k, v)), segments)
    return blockwise.swap(out)[:, :length]


def splash_kernel(heads: int, queries: int, keys: int, *, causal: bool, **options: Any) -> PyTree:
    """Returns the splash kernel of one row, whose arguments are `[heads, time, head_dim]`, with the largest blocks.

    Args:
        heads: number of heads.
        queries, keys: numbers of positions, multiples of SPLASH_LANES.
        causal: whether a position attends only to itself and earlier ones.
        options: options of `make_splash_mha_single_device`.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    of_queries, of_keys = (next(n for n in SPLASH_BLOCKS if time % n == 0) for time in (queries, keys))
    sizes = pallas.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
    )
    mask = (pallas.CausalMask if causal else pallas.FullMask)((queries, keys))
    return pallas.make_splash_mha_single_device(pallas.MultiHeadMask([mask] * heads), block_sizes=sizes, **options)


def splash_queries(q: jax.Array) -> jax.Array:
    """Returns the queries `[..., head_dim]` divided by sqrt(head_dim), since the kernel does not scale the scores."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    """Returns `[batch, time, heads, head_dim]` with zeros appended up to a multiple of positions."""
    missing = _round_up(x.shape[1], multiple) - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x


def _pad_segments(ids: jax.Array, multiple: int) -> jax.Array:
    """Returns segment ids `[batch, time]` with the padding of `_pad` as a new segment."""
    missing = _round_up(ids.shape[1], multiple) - ids.shape[1]
    new = ids.min(axis=1, keepdims=True) - 1
    return jnp.concatenate([ids, jnp.repeat(new, missing, axis=1)], axis=1) if missing else ids


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


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
    parts = math.prod(here.size(axis) for axis in axes_of(heads))
    return PartitionSpec(batch, time_axis, heads, None), PartitionSpec(batch, time_axis), parts


def divide_heads(k: jax.Array, parts: int) -> jax.Array:
    """Repeats the heads of `[batch, time, kv_heads, head_dim]` as rarely as possible so that `parts` divides them.

    The number of query heads must be a multiple of `parts` and of `kv_heads`. Then part i of the queries uses part i of
    the result.
    """
    return jnp.repeat(k, math.lcm(k.shape[2], parts) // k.shape[2], axis=2)
