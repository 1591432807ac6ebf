"""The product of rows and kernels by group: each group of rows has a kernel of its own.

Owns: how each platform computes it. Does not own: which row belongs to which group (`routing.py`).

An accelerator has `jax.lax.ragged_dot`. On a CPU that multiplies every row with every kernel (8 kernels, 4,096 rows of
256 by 512 on two cores: 319 ms, with its gradient 1,095), so there a loop goes over blocks of rows (13 and 60 ms).

Terms. *Block*: rows that are multiplied at once; groups are made of whole blocks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def block_rows(platform: str, rows: int, groups: int) -> int:
    """Returns what the size of a group must be a multiple of: 1 on an accelerator.

    Args:
        platform: cpu, gpu or tpu.
        rows: that are expected, over all groups.
        groups: how many.
    """
    return 1 if platform != "cpu" else min(128, max(8, 1 << (rows // groups).bit_length()))


def grouped_matmul(rows: jax.Array, kernels: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """Returns `[rows, out]`: each row times the kernel of its group; the rows after the last group are not defined.

    Args:
        rows: `[rows, features]`, group after group.
        kernels: `[groups, features, out]`.
        sizes: `[groups]` rows of each; multiples of `block`.
        block: as `block_rows` gives it. Within a `jax.shard_map`, all three arrays vary over the same axes.
    """
    if block == 1:
        return jax.lax.ragged_dot(rows, kernels, sizes)
    return _blocks(block, rows, kernels, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(block: int, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """`grouped_matmul` by blocks; as many as there are, so that rows after the last group cost nothing."""
    group = _groups(block, rows.shape[0], sizes)

    def one(i: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
        return jax.lax.dynamic_update_slice_in_dim(out, part @ kernels[group[i]], i * block, 0)

    return jax.lax.fori_loop(0, sizes.sum() // block, one, _zeros((len(rows), kernels.shape[2]), rows.dtype, sizes))


def _blocks_forward(block: int, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return _blocks(block, rows, kernels, sizes), (rows, kernels, sizes)


def _blocks_backward(block: int, kept: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = kept
    group = _groups(block, rows.shape[0], sizes)

    def one(i: jax.Array, sums: jax.Array) -> jax.Array:
        a, b = (jax.lax.dynamic_slice_in_dim(x, i * block, block) for x in (rows, g))
        product = jnp.matmul(a.T, b, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_index_in_dim(sums, sums[group[i]] + product, group[i], 0)

    sums = jax.lax.fori_loop(0, sizes.sum() // block, one, _zeros(kernels.shape, jnp.float32, sizes))
    return _blocks(block, g, kernels.swapaxes(1, 2), sizes), sums.astype(kernels.dtype), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _groups(block: int, rows: int, sizes: jax.Array) -> jax.Array:
    """The group of each block `[rows / block]`."""
    starts = jnp.arange(rows // block) * block
    return jnp.minimum((starts[:, None] >= jnp.cumsum(sizes)).sum(1), sizes.shape[0] - 1)


def _zeros(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.Array:
    """Zeros that vary over the same manual axes as `like` `[n]` int, which a loop's first value must."""
    return jnp.zeros(shape, dtype) + (0 * like[0]).astype(dtype)
