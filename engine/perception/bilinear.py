"""Values of a feature map between its pixels, equal to `grid_sample` of PyTorch in value and gradient.

Spatial transformer networks (Jaderberg et al. 2015, arXiv:1506.02025) introduced the operation. At a kink, such as a
pixel's centre or the border, the gradient is the one that PyTorch chooses.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError

MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")


def grid_sample(
    x: jax.Array,
    grid: jax.Array,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border", "reflection"] = "zeros",
    align_corners: bool = False,
) -> jax.Array:
    """Returns the values `[batch, ..., width]` of a map at the points of a grid, in the dtype of `x`.

    Weights are float32. With mode "bilinear", a point with a coordinate that is not finite is NaN; with padding
    "border", an infinite one is at the border instead. With mode "nearest", where there is no NaN, such a point is 0.

    Args:
        x: map `[batch, rows, columns, width]`.
        grid: points `[batch, ..., 2]`: x along the columns and y along the rows, -1 to 1 over the map.
        mode: "bilinear", or "nearest" for the pixel with the nearest centre, to even in a tie. The latter has no
            gradient of the grid.
        padding: value outside of the map: 0, that of the nearest pixel of the border, or that of the map mirrored at
            its border.
        align_corners: whether -1 and 1 are the centres of the outermost pixels, instead of their outer edges.

    Raises:
        TaskError: an unknown mode or padding, or shapes that do not fit.
    """
    for name, value, allowed in (("mode", mode, MODES), ("padding", padding, PADDINGS)):
        if value not in allowed:
            raise TaskError(f"grid_sample: {name}={value!r} is unknown. Allowed are {', '.join(allowed)}.")
    if x.ndim != 4 or grid.ndim < 2 or grid.shape[-1] != 2 or grid.shape[0] != x.shape[0]:
        raise TaskError(
            f"grid_sample: found a map of shape {x.shape} and a grid of shape {grid.shape}. The map is [batch, rows, "
            "columns, width], and the grid is [batch, ..., 2] with the same batch."
        )
    places = grid.astype(jnp.float32).reshape(x.shape[0], -1, 2)
    at = [_pixel(places[..., k], x.shape[2 - k], padding, align_corners) for k in (0, 1)]
    found = _nearest(x, *at) if mode == "nearest" else _bilinear(x, *at)
    return found.astype(x.dtype).reshape(*grid.shape[:-1], x.shape[-1])


def _pixel(place: jax.Array, size: int, padding: str, align_corners: bool) -> jax.Array:
    """Returns coordinates in pixels, 0 for the centre of the first one; within the map unless the padding is zeros."""
    at = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
    if padding == "zeros":
        return at
    if padding == "reflection":
        at = _mirrored(at, 0.0 if align_corners else -0.5, size - 1 if align_corners else size)
    # At the limits, PyTorch has no gradient; that of jnp.clip would be half.
    return jnp.where(at <= 0, 0.0, jnp.where(at >= size - 1, size - 1.0, at))


def _mirrored(at: jax.Array, low: float, span: int) -> jax.Array:
    if span == 0:
        return jnp.zeros_like(at)
    distance = jnp.where(at < low, low - at, at - low)
    rest = jnp.fmod(distance, span)
    return low + jnp.where(jnp.floor(distance / span) % 2 == 0, rest, span - rest)


def _at(x: jax.Array, column: jax.Array, row: jax.Array) -> jax.Array:
    """Returns `[batch, points, width]`: the pixels at whole coordinates in floats, zeros outside of the map."""
    rows, columns = x.shape[1:3]
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    index = jnp.where(inside, row * columns + column, rows * columns).astype(jnp.int32)
    flat = x.reshape(x.shape[0], rows * columns, x.shape[-1])
    return jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(flat, index)


def _nearest(x: jax.Array, column: jax.Array, row: jax.Array) -> jax.Array:
    return _at(x, jnp.round(column), jnp.round(row))


def _bilinear(x: jax.Array, column: jax.Array, row: jax.Array) -> jax.Array:
    left, top = (jax.lax.stop_gradient(jnp.floor(at)) for at in (column, row))
    total = jnp.zeros((), jnp.float32)
    for corner_x, share_x in ((left, left + 1 - column), (left + 1, column - left)):
        for corner_y, share_y in ((top, top + 1 - row), (top + 1, row - top)):
            total = total + _at(x, corner_x, corner_y) * (share_x * share_y)[..., None]
    return total
