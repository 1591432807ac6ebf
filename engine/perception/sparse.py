"""Sparse convolution over voxels: at the sites of its input, at each site that an input reaches, and back.

As in Submanifold Sparse Convolutional Networks (Graham et al. 2018, arXiv:1711.10275) and SECOND (Yan et al. 2018,
doi:10.3390/s18103337). A table has the place of the site that each offset of the kernel reads. Each offset is a gather
and a product, one after the other. The backward pass reads the transposed table, and so needs no scatter of features.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import TaskError
from engine.perception.cells import check_cells, search, unique


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

        def put(index: jax.Array, x: jax.Array) -> jax.Array:
            # No cell has two sites. Otherwise the derivative would look for the last one in a grid of integers.
            return empty.at[index].set(x, mode="drop", unique_indices=True, indices_are_sorted=True)

        grid = jax.vmap(put)(self.index, self.features)
        return grid.reshape(grid.shape[0], *self.shape, width)


def neighbours(grid: SparseGrid, sizes: Sequence[int] = (3, 3, 3)) -> jax.Array:
    """Returns the table that convolutions at the same sites share, int32 `[offsets, batch, capacity]`.

    For each offset of a kernel, in row-major order, and each site, it has the place of the site's neighbour in
    `grid.index`, and a number of at least the capacity where there is none.

    Args:
        grid: sites; its features are not read.
        sizes: the three odd sizes of the kernel.

    Raises:
        TaskError: a size is even.
    """
    _check_odd("neighbours", sizes)
    at = _coordinates(grid.index, grid.shape)
    return _table(grid, [x - size // 2 for x, size in zip(at, sizes, strict=True)], grid.valid, sizes)


def submanifold_conv(grid: SparseGrid, kernel: jax.Array, table: jax.Array | None = None) -> SparseGrid:
    """Returns the convolution at the sites of its input, so that the number of sites does not grow.

    Args:
        grid: features `[batch, capacity, inputs]`.
        kernel: `[size, size, size, inputs, outputs]` of odd sizes, one for each dimension of the grid.
        table: `neighbours` of the same sites and sizes. Without it, each call searches for them.

    Raises:
        TaskError: a size of the kernel is even, or a table has another shape.
    """
    sizes = kernel.shape[:3]
    _check_odd("submanifold_conv", sizes)
    table = neighbours(grid, sizes) if table is None else table
    wanted = (math.prod(sizes), *grid.index.shape)
    if table.shape != wanted:
        raise TaskError(f"submanifold_conv: a table of shape {table.shape}. The sites and the kernel need {wanted}.")
    return SparseGrid(grid.index, _convolved(grid.features, kernel, table, True), grid.shape)


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
    first = [x * stride - padding for x in _coordinates(index, shape)]
    table = _table(grid, first, index < cells, sizes)
    features = _convolved(grid.features, kernel, table, False)
    return SparseGrid(index, features, shape), jnp.maximum(count - capacity, 0)


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
    first = [x * stride - padding for x in _coordinates(grid.index, grid.shape)]
    read = _table(like, first, grid.valid, kernel.shape[:3])
    table = _transposed(read, like.index.shape[1])
    return SparseGrid(like.index, _convolved(grid.features, kernel, table, False), like.shape)


def _check_odd(name: str, sizes: Sequence[int]) -> None:
    if not all(size % 2 for size in sizes):
        raise TaskError(f"{name}: a kernel of {' x '.join(map(str, sizes))}. Allowed are odd sizes.")


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


def _table(grid: SparseGrid, first: list[jax.Array], valid: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns the place in `grid.index` of the site that each offset of a kernel reads, `[offsets, batch, sites]`.

    Places of the same offset are different, and at least the capacity where there is no site. Cells of a row have
    consecutive indices, so that one search serves all offsets along the last dimension.

    Args:
        grid: sites that are read.
        first: the cell (z, y, x) of the first offset, each `[batch, sites]`.
        valid: bool `[batch, sites]`: False for sites that read nothing.
        sizes: of the kernel.
    """
    rows = np.array(list(itertools.product(*map(range, sizes[:2]))))[:, :, None, None]
    z, y = first[0] + rows[:, 0], first[1] + rows[:, 1]  # [rows of the kernel, batch, sites]
    valid = valid & (z >= 0) & (z < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
    cell = (z * grid.shape[1] + y) * grid.shape[2] + first[2]
    place, capacity = jax.vmap(search, (0, 1), 1)(grid.index, cell), grid.index.shape[1]
    missing = capacity + jnp.arange(cell.shape[-1])
    columns = []
    for k in range(sizes[2]):
        there = _read(grid.index, place, -1) == cell + k
        inside = (first[2] + k >= 0) & (first[2] + k < grid.shape[2])
        columns.append(jnp.where(there & inside & valid, place, missing))
        place = place + there
    return jnp.stack(columns, 1).reshape(-1, *cell.shape[1:]).astype(jnp.int32)


def _read(x: jax.Array, places: jax.Array, missing: int = 0) -> jax.Array:
    """Returns `x` `[batch, capacity, ...]` at places `[..., batch, sites]`, and `missing` at those beyond its end."""
    read = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=missing), (0, -2), places.ndim - 2)
    return read(x, places)


def _transposed(table: jax.Array, capacity: int) -> jax.Array:
    """Returns the table that sends `capacity` places that a table reads back to the sites that read them."""
    sites = table.shape[-1]
    missing = jnp.arange(sites, sites + capacity, dtype=jnp.int32)
    own = jnp.arange(sites, dtype=jnp.int32)
    back = jax.vmap(jax.vmap(lambda places: missing.at[places].set(own, mode="drop", unique_indices=True)))
    return back(table)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolved(features: jax.Array, kernel: jax.Array, table: jax.Array, symmetric: bool) -> jax.Array:
    """Returns the sum over the offsets of a kernel of the products of the features that the table names.

    Args:
        features: `[batch, capacity, inputs]`.
        kernel: `[size, size, size, inputs, outputs]`.
        table: as from `_table`.
        symmetric: whether the reversed table is the transposed one, as for neighbours.
    """

    def add(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        places, weights = step
        x = _read(features, places)
        return total + jnp.matmul(x, weights.astype(x.dtype), preferred_element_type=jnp.float32), None

    total = jnp.zeros((*table.shape[1:], kernel.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, total, (table, kernel.reshape(-1, *kernel.shape[3:])))
    return total.astype(features.dtype)


def _forward(features: jax.Array, kernel: jax.Array, table: jax.Array, symmetric: bool) -> tuple[jax.Array, Any]:
    return _convolved(features, kernel, table, symmetric), (features, kernel, table)


def _backward(symmetric: bool, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    features, kernel, table = saved
    back = table[::-1] if symmetric else _transposed(table, features.shape[1])

    def product(_: None, places: jax.Array) -> tuple[None, jax.Array]:
        x = _read(features, places)
        return None, jnp.einsum("bsi,bso->bio", x, gradient, preferred_element_type=jnp.float32)

    # Summed over the batch after the loop: devices that split the batch exchange one sum, not one for each offset.
    _, kernels = jax.lax.scan(product, None, table)
    kernels = kernels.sum(1).reshape(kernel.shape).astype(kernel.dtype)
    return _convolved(gradient, kernel.swapaxes(3, 4), back, symmetric), kernels, None


_convolved.defvjp(_forward, _backward)
