"""Sparse convolution over voxels: at the sites of its input, at each site that an input reaches, and back.

As in Submanifold Sparse Convolutional Networks (Graham et al. 2018, arXiv:1711.10275) and SECOND (Yan et al. 2018,
doi:10.3390/s18103337). Sites are sorted by index, so that a binary search finds a neighbour. Each offset of the kernel
is a gather and a product, one after the other; the backward pass gathers again, so that no gathered array is kept.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.perception.cells import check_cells, unique


@functools.partial(jax.tree_util.register_dataclass, data_fields=("index", "features"), meta_fields=("shape",))
@dataclasses.dataclass(frozen=True)
class SparseGrid:
    """Features at some cells of a grid of three dimensions.

    Args:
        index: int32 `[batch, capacity]`: indices of cells in ascending order, row-major, then the number of cells as
            padding, as in `Occupied.cells`.
        features: `[batch, capacity, width]`. Values at padding are not read.
        shape: sizes of the grid; the last one varies fastest, such as (z, y, x).

    Raises:
        TaskError: the grid has more cells than an index of 32 bits can hold.
    """

    index: jax.Array
    features: jax.Array
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        check_cells("SparseGrid", self.shape)

    @property
    def cells(self) -> int:
        """The number of cells of the grid."""
        return math.prod(self.shape)

    @property
    def valid(self) -> jax.Array:
        """Which places have a site, bool `[batch, capacity]`."""
        return self.index < self.cells

    def dense(self) -> jax.Array:
        """Returns the whole grid, `[batch, *shape, width]`, with 0 where there is no site."""
        width = self.features.shape[-1]
        empty = jnp.zeros((self.cells, width), self.features.dtype)
        grid = jax.vmap(lambda index, x: empty.at[index].set(x, mode="drop"))(self.index, self.features)
        return grid.reshape(len(grid), *self.shape, width)


def submanifold_conv(grid: SparseGrid, kernel: jax.Array) -> SparseGrid:
    """Returns the convolution at the sites of its input, so that the number of sites does not grow.

    Args:
        grid: features `[batch, capacity, inputs]`.
        kernel: `[size, size, size, inputs, outputs]` of odd sizes, one for each dimension of the grid.

    Raises:
        TaskError: a size of the kernel is even.
    """
    sizes = kernel.shape[:3]
    if not all(size % 2 for size in sizes):
        raise TaskError(f"submanifold_conv: a kernel of {' x '.join(map(str, sizes))}. Allowed are odd sizes.")
    at = _coordinates(grid.index, grid.shape)

    def sources(offset: jax.Array) -> jax.Array:
        moved = [x + k - size // 2 for x, k, size in zip(at, offset, sizes, strict=True)]
        return _index(moved, grid.shape, grid.valid)

    return SparseGrid(grid.index, _convolved(grid, kernel, sources), grid.shape)


def strided_conv(
    grid: SparseGrid, kernel: jax.Array, *, stride: int, padding: int, capacity: int
) -> tuple[SparseGrid, jax.Array]:
    """Returns the convolution at each site that an input reaches, and the sites beyond the capacity, int32 `[batch]`.

    The size of each dimension of the result is (size + 2 padding - kernel) // stride + 1, as in a dense convolution.
    Of too many sites, those with the largest indices are left out.

    Args:
        grid: features `[batch, capacity, inputs]`.
        kernel: `[size, size, size, inputs, outputs]`, one size for each dimension of the grid.
        stride: step between sites of the result, at least 1.
        padding: zeros on each side of the input.
        capacity: number of sites of the result.

    Raises:
        TaskError: a stride below 1.
    """
    _check_stride("strided_conv", stride)
    sizes = kernel.shape[:3]
    z, y, x = ((old + 2 * padding - size) // stride + 1 for old, size in zip(grid.shape, sizes, strict=True))
    shape = (z, y, x)
    cells = check_cells("strided_conv", shape)
    at = _coordinates(grid.index, grid.shape)
    # An input at place p reaches the sites (p + padding - k) / stride that are whole numbers: at most this many.
    reached = []
    for number in itertools.product(*(range(-(-size // stride)) for size in sizes)):
        site = [(x + padding) // stride - n for x, n in zip(at, number, strict=True)]
        within = [x + padding - s * stride < size for x, s, size in zip(at, site, sizes, strict=True)]
        reached.append(_index(site, shape, grid.valid & functools.reduce(jnp.logical_and, within)))
    candidates = jnp.concatenate(reached, -1)
    index, count = jax.vmap(lambda one: unique(one, cells, capacity))(candidates)
    out, valid = _coordinates(index, shape), index < cells

    def sources(offset: jax.Array) -> jax.Array:
        return _index([x * stride - padding + k for x, k in zip(out, offset, strict=True)], grid.shape, valid)

    return SparseGrid(index, _convolved(grid, kernel, sources), shape), jnp.maximum(count - capacity, 0)


def inverse_conv(grid: SparseGrid, kernel: jax.Array, like: SparseGrid, *, stride: int, padding: int) -> SparseGrid:
    """Returns the transposed convolution at given sites, such as those before `strided_conv`.

    Args:
        grid: features `[batch, capacity, inputs]`, as from `strided_conv` with the same stride and padding.
        kernel: `[size, size, size, inputs, outputs]`.
        like: grid that has the sites of the result; its features are not read.
        stride: step of a site of `grid` in cells of `like`.
        padding: as in `strided_conv`.

    Raises:
        TaskError: a stride below 1.
    """
    _check_stride("inverse_conv", stride)
    at = _coordinates(like.index, like.shape)

    def sources(offset: jax.Array) -> jax.Array:
        moved = [x + padding - k for x, k in zip(at, offset, strict=True)]
        whole = functools.reduce(jnp.logical_and, (x % stride == 0 for x in moved))
        return _index([x // stride for x in moved], grid.shape, like.valid & whole)

    return SparseGrid(like.index, _convolved(grid, kernel, sources), like.shape)


def _check_stride(name: str, stride: int) -> None:
    if stride < 1:
        raise TaskError(f"{name}: stride = {stride}. Allowed are whole numbers from 1.")


def _coordinates(index: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Returns the place of cells along each dimension; those of padding are outside of the grid or of no use."""
    _, rows, columns = shape
    return [index // (rows * columns), index // columns % rows, index % columns]


def _index(at: list[jax.Array], shape: tuple[int, ...], valid: jax.Array) -> jax.Array:
    """Returns the index of cells, and the number of cells where they are not valid or outside of the grid."""
    for x, size in zip(at, shape, strict=True):
        valid = valid & (x >= 0) & (x < size)
    index = (at[0] * shape[1] + at[1]) * shape[2] + at[2]
    return jnp.where(valid, index, math.prod(shape)).astype(jnp.int32)


def _convolved(grid: SparseGrid, kernel: jax.Array, sources: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the sum over the offsets of the kernel of the products of features at `sources(offset)`.

    Args:
        grid: the features.
        kernel: `[size, size, size, inputs, outputs]`.
        sources: gives the cells of `grid` that an offset reads, `[batch, sites]`, and the number of cells for none. An
            offset reads no cell twice.
    """
    offsets = jnp.array(list(itertools.product(*map(range, kernel.shape[:3]))), jnp.int32)
    places = jax.lax.map(lambda offset: _places(grid, sources(offset)), offsets)

    @jax.checkpoint
    def add(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, weights = step
        x = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0, unique_indices=True))(grid.features, place)
        return total + jnp.matmul(x, weights.astype(x.dtype), preferred_element_type=jnp.float32), None

    total = jnp.zeros((*places.shape[1:], kernel.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, total, (places, kernel.reshape(-1, *kernel.shape[3:])))
    return total.astype(grid.features.dtype)


def _places(grid: SparseGrid, wanted: jax.Array) -> jax.Array:
    """Returns the places of cells in `grid.index`; different places beyond its end for cells that have no site."""
    # Unrolled, the rounds of the search are one kernel of a GPU instead of several for each.
    place = jax.vmap(functools.partial(jnp.searchsorted, method="scan_unrolled"))(grid.index, wanted)
    capacity = grid.index.shape[1]
    there = jax.vmap(lambda index, at: index.at[at].get(mode="fill", fill_value=-1))(grid.index, place) == wanted
    missing = capacity + jnp.arange(wanted.shape[1])
    return jnp.where(there & (wanted < grid.cells), place, missing).astype(jnp.int32)
