"""Sum, mean and maximum of the points of each cell of a grid.

The maximum is that of PointPillars (Lang et al. 2019, arXiv:1812.05784). Its gradient belongs to the first of the
largest points alone, and needs gathers only: the derivative of JAX's scatter-max has a scatter too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_MOST = 2**16  # points whose places fit into the lower half of a key


def scatter_sum(x: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the sum of the points of each cell, `[batch, cells, width]` in the dtype of `x`; 0 without points.

    Args:
        x: values of the points `[batch, points, width]`. Half precision loses small values in large sums.
        index: int32 `[batch, points]`: cell of each point; those outside of 0 to `cells` - 1 are dropped.
        cells: number of cells.
    """
    index = _inside(index, cells)
    return jax.vmap(lambda x, index: jnp.zeros((cells, x.shape[-1]), x.dtype).at[index].add(x, mode="drop"))(x, index)


def scatter_mean(x: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the mean of the points of each cell, as `scatter_sum`; computed in float32."""
    total = scatter_sum(x.astype(jnp.float32), index, cells)
    count = scatter_sum(jnp.ones((*index.shape, 1), jnp.float32), index, cells)
    return (total / jnp.maximum(count, 1)).astype(x.dtype)


def scatter_max(x: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the largest value of the points of each cell, `[batch, cells, width]`; 0 without points.

    The gradient belongs to the first of several equal points. In half precision and with at most 65,536 points, one
    scatter finds the values and their points together.

    Args:
        x: values of the points `[batch, points, width]`, in a floating dtype.
        index: int32 `[batch, points]`: cell of each point; those outside of 0 to `cells` - 1 are dropped.
        cells: number of cells.
    """
    index = _inside(index, cells)
    return jax.vmap(lambda x, index: _largest(x, index, cells))(x, index)


def _inside(index: jax.Array, cells: int) -> jax.Array:
    return jnp.where(index < 0, cells, index)  # a negative index would count from the end


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _largest(x: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    values = jnp.full((cells, x.shape[-1]), -jnp.inf, x.dtype).at[index].max(x, mode="drop")
    return jnp.where(values == -jnp.inf, 0, values)


def _forward(x: jax.Array, index: jax.Array, cells: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    if x.dtype.itemsize == 2 and len(x) <= _MOST:
        values, place = _with_places(x, index, cells)
    else:
        values = _largest(x, index, cells)
        won = x == values.at[index].get(mode="fill", fill_value=0)
        rows = jnp.where(won, jnp.arange(len(x), dtype=jnp.int32)[:, None], len(x))
        place = jnp.full(values.shape, len(x), jnp.int32).at[index].min(rows, mode="drop")
    return values, (index, place)


def _with_places(x: jax.Array, index: jax.Array, cells: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest values and their places, from the maximum of integers of both.

    A negative number's bits without the sign grow with its size, so they are inverted.
    """
    x = jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x == 0, 0, x))  # one NaN, and one zero: -0 equals 0
    bits = jax.lax.bitcast_convert_type(x, jnp.int16).astype(jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFF, bits)
    keys = ordered << 16 | (_MOST - 1 - jnp.arange(len(x), dtype=jnp.int32))[:, None]
    none = jnp.iinfo(jnp.int32).min  # below the key of every number
    best = jnp.full((cells, x.shape[-1]), none, jnp.int32).at[index].max(keys, mode="drop")
    high = best >> 16
    values = jax.lax.bitcast_convert_type(jnp.where(high < 0, high ^ 0x7FFF, high).astype(jnp.int16), x.dtype)
    empty = (best == none) | (values == -jnp.inf)  # as in _largest
    return jnp.where(empty, 0, values), jnp.where(empty, len(x), _MOST - 1 - (best & 0xFFFF))


def _backward(cells: int, saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[Any, None]:
    index, place = saved
    won = place.at[index].get(mode="fill", fill_value=-1) == jnp.arange(len(index), dtype=jnp.int32)[:, None]
    return jnp.where(won, gradient.at[index].get(mode="fill", fill_value=0), 0), None


_largest.defvjp(_forward, _backward)
