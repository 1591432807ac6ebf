"""Grouped matrix product: each group of rows is multiplied by the kernel of its group.

Accelerators use `jax.lax.ragged_dot`. XLA:CPU would multiply every row by every kernel for it (8 kernels, 4,096 rows of
256 by 512: 319 ms, with the gradient 1,095 ms), so a CPU uses a loop over blocks of rows (13 and 60 ms). Every group
consists of whole blocks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def block_rows(platform: str, rows: int, groups: int) -> int:
    """Returns the rows per block; 1 on an accelerator. The size of each group must be a multiple of it.

    Args:
        platform: cpu, gpu or tpu.
        rows: expected number of rows of all groups.
        groups: number of groups.
    """
    return 1 if platform != "cpu" else min(128, max(8, 1 << (rows // groups).bit_length()))


def grouped_matmul(rows: jax.Array, kernels: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """Returns `[rows, out]`: each row times the kernel of its group. Rows after the last group are undefined.

    Args:
        rows: `[rows, features]`, group after group.
        kernels: `[groups, features, out]`.
        sizes: `[groups]`, rows of each group, multiples of `block`.
        block: result of `block_rows`.

    Within a `jax.shard_map` all three arrays must vary over the same axes.
    """
    if block == 1:
        return jax.lax.ragged_dot(rows, kernels, sizes)
    return _by_blocks(block, rows, kernels, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(block: int, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Computes `grouped_matmul` in a loop over the blocks of all groups; rows after the last group cost no time."""
    group = _group_of_block(block, rows.shape[0], sizes)

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
        return jax.lax.dynamic_update_slice_in_dim(out, part @ kernels[group[i]], i * block, 0)

    return jax.lax.fori_loop(0, sizes.sum() // block, body, _zeros((len(rows), kernels.shape[2]), rows.dtype, sizes))


type _Saved = tuple[jax.Array, jax.Array, jax.Array]


def _by_blocks_forward(block: int, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> tuple[jax.Array, _Saved]:
    return _by_blocks(block, rows, kernels, sizes), (rows, kernels, sizes)


def _by_blocks_backward(block: int, saved: _Saved, d_out: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = saved
    group = _group_of_block(block, rows.shape[0], sizes)

    def body(i: jax.Array, sums: jax.Array) -> jax.Array:
        a, b = (jax.lax.dynamic_slice_in_dim(x, i * block, block) for x in (rows, d_out))
        product = jnp.matmul(a.T, b, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_index_in_dim(sums, sums[group[i]] + product, group[i], 0)

    sums = jax.lax.fori_loop(0, sizes.sum() // block, body, _zeros(kernels.shape, jnp.float32, sizes))
    return _by_blocks(block, d_out, kernels.swapaxes(1, 2), sizes), sums.astype(kernels.dtype), None


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def _group_of_block(block: int, rows: int, sizes: jax.Array) -> jax.Array:
    """Returns the group of each block, `[rows / block]`."""
    starts = jnp.arange(rows // block) * block
    return jnp.minimum((starts[:, None] >= jnp.cumsum(sizes)).sum(1), sizes.shape[0] - 1)


def _zeros(shape: tuple[int, ...], dtype: DTypeLike, like: jax.Array) -> jax.Array:
    """Returns zeros that vary over the same manual axes as `like` `[n]`, as the initial value of a loop must."""
    return jnp.zeros(shape, dtype) + (0 * like[0]).astype(dtype)
