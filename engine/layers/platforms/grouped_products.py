"""Grouped matrix product: each group of rows is multiplied by the kernel of its group.

TPUs use `jax.lax.ragged_dot`. XLA multiplies every row by every kernel for it on the other platforms (on a CPU 319 ms
for 8 kernels and 4,096 rows of 256 by 512, with the gradient 1,095 ms), so that groups there consist of whole blocks of
rows. A CPU multiplies one block after another (13 and 60 ms). A GPU multiplies the first blocks of all groups as one
batched product, and loops over the blocks of longer groups, of which a balanced router leaves few.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

BATCHED_FACTOR = 1.25
"""Rows of a group in the batched product of a GPU, relative to their expected number."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How rows are divided. The size of each group and the number of rows must be multiples of `block`."""

    block: int
    """Rows of a block; 1 for `jax.lax.ragged_dot`."""
    batched: int = 0
    """Blocks of each group in the batched product."""


def blocks_for(platform: str, rows: int, groups: int) -> Blocks:
    """Returns the division of rows that a platform computes fastest.

    Args:
        platform: `Layout.platform`. A trace that only counts FLOPs ("reference") counts `jax.lax.ragged_dot`.
        rows: expected number of rows of all groups.
        groups: number of groups.
    """
    if platform not in ("cpu", "gpu"):
        return Blocks(1)
    block = min(128, max(8, 1 << (rows // groups).bit_length()))
    return Blocks(block, -(-int(BATCHED_FACTOR * rows) // (groups * block)) if platform == "gpu" else 0)


def grouped_matmul(
    rows: jax.Array, kernels: jax.Array, sizes: jax.Array, blocks: Blocks, dtype: DTypeLike | None = None
) -> jax.Array:
    """Returns `[rows, out]`: each row times the kernel of its group. Rows after the last group are undefined.

    Args:
        rows: `[rows, features]`, group after group.
        kernels: `[groups, features, out]`.
        sizes: `[groups]`, rows of each group.
        blocks: result of `blocks_for`.
        dtype: data type of the result; None for that of `rows`. With another one there is no gradient.

    Within a `jax.shard_map` all three arrays must vary over the same axes.
    """
    if blocks.block == 1:
        return jax.lax.ragged_dot(rows, kernels, sizes, preferred_element_type=dtype)
    if dtype is not None:
        return _multiply_blocks(blocks, dtype, rows, kernels, sizes)
    return _by_blocks(blocks, rows, kernels, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(blocks: Blocks, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Computes `grouped_matmul`; rows after the last group cost no time."""
    return _multiply_blocks(blocks, rows.dtype, rows, kernels, sizes)


def _multiply_blocks(
    blocks: Blocks, dtype: DTypeLike, rows: jax.Array, kernels: jax.Array, sizes: jax.Array
) -> jax.Array:
    plan, block = _Plan(blocks, rows.shape[0], sizes), blocks.block
    product = functools.partial(jnp.matmul, preferred_element_type=dtype)

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        group, start = plan.looped(i)
        part = jax.lax.dynamic_slice_in_dim(rows, start, block)
        return jax.lax.dynamic_update_slice_in_dim(out, product(part, kernels[group]), start, 0)

    if blocks.batched:
        out = plan.unbatch(product(plan.batch(rows), kernels))
    else:
        out = _zeros((len(rows), kernels.shape[2]), dtype, sizes)
    return jax.lax.fori_loop(0, plan.loops, body, out)


type _Saved = tuple[jax.Array, jax.Array, jax.Array]


def _by_blocks_forward(
    blocks: Blocks, rows: jax.Array, kernels: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, _Saved]:
    return _by_blocks(blocks, rows, kernels, sizes), (rows, kernels, sizes)


def _by_blocks_backward(blocks: Blocks, saved: _Saved, d_out: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = saved
    plan, block = _Plan(blocks, rows.shape[0], sizes), blocks.block

    def body(i: jax.Array, sums: jax.Array) -> jax.Array:
        group, start = plan.looped(i)
        a, b = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (rows, d_out))
        product = jnp.matmul(a.T, b, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_index_in_dim(sums, sums[group] + product, group, 0)

    if blocks.batched:
        a, b = plan.batch(rows), plan.batch(d_out)
        sums = jnp.matmul(a.swapaxes(1, 2), b, preferred_element_type=jnp.float32)
    else:
        sums = _zeros(kernels.shape, jnp.float32, sizes)
    sums = jax.lax.fori_loop(0, plan.loops, body, sums)
    return _by_blocks(blocks, d_out, kernels.swapaxes(1, 2), sizes), sums.astype(kernels.dtype), None


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


class _Plan:
    """Which blocks of rows are in the batched product, and which in the loop."""

    def __init__(self, blocks: Blocks, rows: int, sizes: jax.Array):
        self.blocks, self.count = blocks, rows // blocks.block
        self.sizes = sizes // blocks.block  # in blocks, like all below
        self.starts = jnp.cumsum(self.sizes) - self.sizes
        rest = jnp.maximum(self.sizes - blocks.batched, 0)
        self.rest_ends = jnp.cumsum(rest)
        self.rest_starts = self.rest_ends - rest
        self.loops = rest.sum()

    def looped(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the group and the first row of block i of the loop."""
        group = (i >= self.rest_ends).sum()
        start = self.starts[group] + self.blocks.batched + i - self.rest_starts[group]
        return group, start * self.blocks.block

    def batch(self, rows: jax.Array) -> jax.Array:
        """Returns the first rows of each group, `[groups, batched rows, features]`; 0 after the end of a group."""
        index = jnp.arange(self.blocks.batched)
        index = jnp.where(index < self.sizes[:, None], self.starts[:, None] + index, self.count)
        parts = rows.reshape(self.count, self.blocks.block, -1).at[index].get(mode="fill", fill_value=0)
        return parts.reshape(len(self.sizes), -1, rows.shape[1])

    def unbatch(self, batched: jax.Array) -> jax.Array:
        """Returns `[rows, features]` with the rows of `batch` at their positions, and 0 elsewhere."""
        groups, each = len(self.sizes), self.blocks.batched
        index = jnp.arange(self.count)
        group = jnp.minimum((index[:, None] >= self.starts + self.sizes).sum(1), groups - 1)
        rank = index - self.starts[group]
        index = jnp.where(rank < jnp.minimum(self.sizes[group], each), group * each + rank, groups * each)
        parts = batched.reshape(groups * each, self.blocks.block, -1).at[index].get(mode="fill", fill_value=0)
        return parts.reshape(-1, batched.shape[2])


def _zeros(shape: tuple[int, ...], dtype: DTypeLike, like: jax.Array) -> jax.Array:
    """Returns zeros that vary over the same manual axes as `like` `[n]`, as the initial value of a loop must."""
    return jnp.zeros(shape, dtype) + (0 * like[0]).astype(dtype)
