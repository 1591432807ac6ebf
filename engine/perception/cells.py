"""Cells of a grid: the cell of each point, the cells that have points, and the first points of each cell.

They are the first steps of PointPillars (Lang et al. 2019, arXiv:1812.05784) and VoxelNet (Zhou and Tuzel 2018,
arXiv:1711.06396). A capacity bounds the memory, and what it leaves out is counted.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError


class Occupied(NamedTuple):
    """The cells that have points, in ascending order.

    `cells` is int32 `[batch, capacity]`: indices of cells, and the number of cells in the places that are left over.
    `slots` is int32 `[batch, points]`: the place of each point's cell in `cells`, and the capacity if it has none.
    `overflow` is int32 `[batch]`: cells with points beyond the capacity, which are left out. They are the last ones.
    """

    cells: jax.Array
    slots: jax.Array
    overflow: jax.Array


class FirstPoints(NamedTuple):
    """The first points of each cell.

    `places` is int32 `[batch, cells, count]`: indices of points, in ascending order, and 0 where there are no more.
    `valid` is bool `[batch, cells, count]`. `overflow` is int32 `[batch]`: points in the grid that are left out.
    """

    places: jax.Array
    valid: jax.Array
    overflow: jax.Array


def cell_indices(
    points: jax.Array,
    lower: Sequence[float],
    size: Sequence[float],
    shape: Sequence[int],
    valid: jax.Array | None = None,
) -> jax.Array:
    """Returns the cell of each point, int32 `[...]`, and the number of cells for a point outside of the grid.

    Points of any dtype are compared in float32 at least. A point that is NaN is outside.
    The x index varies fastest. So values `[cells, width]` of the cells can be reshaped to [z,] y, x, width.

    Args:
        points: `[..., 2 or 3 or more]`: x, y and z in metres; further numbers are not read.
        lower: lower corner of the grid in metres, for 2 or 3 dimensions.
        size: size of a cell in metres.
        shape: number of cells along x, y and z.
        valid: bool `[...]`: False for points that are left out, such as padding.

    Raises:
        TaskError: arguments of different lengths, or more than 2**31 - 2 cells.
    """
    dims = len(shape)
    if not len(lower) == len(size) == dims <= points.shape[-1]:
        raise TaskError(
            f"cell_indices: found {len(lower)} lower limits, {len(size)} sizes, {dims} numbers of cells and points of "
            f"{points.shape[-1]} numbers. The first three must be equal, and the last at least as large."
        )
    cells = check_cells("cell_indices", shape)
    # Compared as floats: a whole number of 32 bits cannot hold a place that is far outside.
    wide = points[..., :dims].astype(jnp.promote_types(points.dtype, jnp.float32))
    place = jnp.floor((wide - jnp.asarray(lower, wide.dtype)) / jnp.asarray(size, wide.dtype))
    inside = ((place >= 0) & (place < jnp.asarray(shape))).all(-1)
    inside = inside if valid is None else inside & valid
    cell = jnp.where(inside[..., None], place, 0).astype(jnp.int32)
    index = sum(cell[..., k] * math.prod(shape[:k]) for k in range(dims))
    return jnp.where(inside, index, cells)


def occupied_cells(index: jax.Array, cells: int, capacity: int) -> Occupied:
    """Returns the cells that have points, of at most `capacity` cells for each example.

    Values of the cells follow from a scatter to the slots, such as `scatter_mean(x, found.slots, capacity)`.

    Args:
        index: int32 `[batch, points]`: cell of each point; those outside of 0 to `cells` - 1 are dropped.
        cells: number of cells.
        capacity: number of cells in the result, at least 1.

    Raises:
        TaskError: a capacity below 1.
    """
    if capacity < 1:
        raise TaskError(f"occupied_cells: capacity = {capacity}. Allowed are whole numbers from 1.")
    return Occupied(*jax.vmap(lambda index: _occupied(index, cells, capacity))(index))


def _occupied(index: jax.Array, cells: int, capacity: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    index = jnp.where((index >= 0) & (index < cells), index, cells).astype(jnp.int32)
    found, count = unique(index, cells, capacity)
    slots = search(found, index).astype(jnp.int32)
    has = found.at[slots].get(mode="fill", fill_value=cells) == index
    return found, jnp.where(has & (index < cells), slots, capacity), jnp.maximum(count - capacity, 0)


def unique(index: jax.Array, cells: int, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Returns the first `capacity` of the sorted different indices below `cells`, then `cells`; and their number."""
    ordered = jnp.sort(index)
    starts = (ordered < cells) & jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])[: len(index)]
    rank = jnp.where(starts, jnp.cumsum(starts) - 1, capacity)
    found = jnp.full(capacity, cells, jnp.int32).at[rank].set(ordered, mode="drop")
    return found, starts.sum(dtype=jnp.int32)


def search(ordered: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the place of the first of the sorted numbers `[capacity]` that is not below each wanted one `[...]`."""
    # Unrolled, the rounds are one kernel of a GPU instead of several for each; a CPU compiles them for seconds.
    by_loop, unrolled = (functools.partial(jnp.searchsorted, method=method) for method in ("scan", "scan_unrolled"))
    return jax.lax.platform_dependent(ordered, wanted, cpu=by_loop, default=unrolled)


def first_points(index: jax.Array, cells: int, count: int) -> FirstPoints:
    """Returns the first `count` points of each cell, in the order of the points.

    Args:
        index: int32 `[batch, points]`: cell of each point, or its slot (`occupied_cells`). Those outside of 0 to
            `cells` - 1 are dropped, and are not counted as overflow.
        cells: number of cells.
        count: most points of a cell, at least 1.
    """
    return FirstPoints(*jax.vmap(lambda index: _first(index, cells, count))(index))


def _first(index: jax.Array, cells: int, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    index = jnp.where((index >= 0) & (index < cells), index, cells).astype(jnp.int32)
    order = jnp.argsort(index, stable=True)
    ordered, rows = index[order], jnp.arange(len(index))
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])[: len(index)]
    rank = rows - jax.lax.cummax(jnp.where(starts, rows, 0))
    kept = (ordered < cells) & (rank < count)
    at = (jnp.where(kept, ordered, cells), jnp.where(kept, rank, 0))
    places = jnp.full((cells, count), -1, jnp.int32).at[at].set(order.astype(jnp.int32), mode="drop")
    lost = ((ordered < cells) & ~kept).sum(dtype=jnp.int32)
    return jnp.maximum(places, 0), places >= 0, lost


def check_cells(name: str, shape: Sequence[int]) -> int:
    """Returns the number of cells of a grid. Raises TaskError if an index of 32 bits cannot hold it."""
    cells = math.prod(shape)
    if not 0 < cells < 2**31 - 1:
        raise TaskError(f"{name}: a grid of {' x '.join(map(str, shape))} cells. Allowed are 1 to {2**31 - 2:,} cells.")
    return cells
