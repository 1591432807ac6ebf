"""Overlap of boxes: axis-aligned, rotated in the bird's-eye view, and in three dimensions. All are differentiable.

The overlap of two rotated rectangles is exact. It is the area that the boundary of one encloses after each of its
points has moved to the nearest point of the other: that leaves points within, and moves the others to the boundary.
Clipping polygons gives the same area, with a list of corners that changes in length.

Boxes of half precision or of whole numbers are converted to float32 first, and results are float32.
"""

import jax
import jax.numpy as jnp

_CORNERS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))  # counter-clockwise
_LEAST = 1e-12  # area or volume in the denominator of an intersection over union


def box_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the intersection over union of axis-aligned boxes, `[...]`; 0 for two boxes without area.

    Args:
        a: boxes `[..., 4]`: lower x, lower y, upper x, upper y.
        b: boxes, whose leading dimensions broadcast with those of `a`: `box_iou(a[:, :, None], b[:, None])` is the
            table of all pairs.
    """
    a, b = _wide(a), _wide(b)
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    both = jnp.maximum(sides, 0).prod(-1)
    areas = [jnp.maximum(box[..., 2:] - box[..., :2], 0).prod(-1) for box in (a, b)]
    return both / jnp.maximum(areas[0] + areas[1] - both, _LEAST)


def rotated_intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the area that two rotated rectangles have in common, `[...]` in square metres.

    The gradient depends on where sides cross. In float32, that place is uncertain for nearly parallel sides: the error
    of the gradient of `rotated_iou` is at most about 3e-7 / sin(angle between sides) for rectangles of 0.3 to 4 m
    within 2 m of the origin, and grows with the distance from the origin. It is far less for exactly parallel sides.

    Args:
        a: rectangles `[..., 5]`: x and y of the centre, length along the heading, width in metres, heading in radians.
        b: rectangles, whose leading dimensions broadcast with those of `a`.
    """
    a, b = _wide(a), _wide(b)
    half = b[..., 2:4] / 2
    edges = _area_below(*_corners_within(a, b), half[..., 0], half[..., 1])
    return jnp.maximum(edges.sum(0), 0)


def rotated_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the intersection over union of rotated rectangles, with arguments as in `rotated_intersection`."""
    a, b = _wide(a), _wide(b)
    both = rotated_intersection(a, b)
    return both / jnp.maximum(a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - both, _LEAST)


def box_iou_3d(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the intersection over union of upright boxes with a heading, by volume, `[...]`.

    Args:
        a: boxes `[..., 7]`: x, y, z of the centre, length, width, height in metres, heading in radians.
        b: boxes, whose leading dimensions broadcast with those of `a`.
    """
    a, b = _wide(a), _wide(b)
    top = jnp.minimum(a[..., 2] + a[..., 5] / 2, b[..., 2] + b[..., 5] / 2)
    bottom = jnp.maximum(a[..., 2] - a[..., 5] / 2, b[..., 2] - b[..., 5] / 2)
    flat = [jnp.concatenate([box[..., :2], box[..., 3:5], box[..., 6:7]], -1) for box in (a, b)]
    both = rotated_intersection(*flat) * jnp.maximum(top - bottom, 0)
    volumes = [box[..., 3:6].prod(-1) for box in (a, b)]
    return both / jnp.maximum(volumes[0] + volumes[1] - both, _LEAST)


def _wide(boxes: jax.Array) -> jax.Array:
    """Returns boxes in float32 at least: float16 holds no area above 65,504, and bfloat16 has 3 digits."""
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _corners_within(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x and y `[4, ...]` of the corners of `a` in the frame of `b`. The corners come first: lanes stay full."""
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    cos, sin = jnp.cos(b[..., 4]), jnp.sin(b[..., 4])
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    turn = a[..., 4] - b[..., 4]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    along, across = (jnp.asarray(signs).reshape(4, *[1] * x.ndim) for signs in zip(*_CORNERS, strict=True))
    u, v = along * a[..., 2], across * a[..., 3]
    return x + cos * u - sin * v, y + sin * u + cos * v


def _area_below(x: jax.Array, y: jax.Array, half_x: jax.Array, half_y: jax.Array) -> jax.Array:
    """Returns the integral of x dy along edges whose points have moved to the nearest point of a centred rectangle.

    `x` and `y` are the first points of the edges `[4, ...]`. A moved edge is straight between the times in 0 to 1 at
    which it crosses the lines of the rectangle's sides.
    """
    dx, dy = (jnp.roll(place, -1, 0) - place for place in (x, y))
    low, high = _window(y, dy, half_y, jnp.zeros_like(y), jnp.ones_like(y))
    first, second = _window(x, dx, half_x, low, high)
    at = [jnp.clip(x + dx * time, -half_x, half_x) for time in (low, first, second, high)]
    parts = (first - low) * (at[0] + at[1]), (second - first) * (at[1] + at[2]), (high - second) * (at[2] + at[3])
    return dy * sum(parts) / 2


def _window(
    place: jax.Array, speed: jax.Array, half: jax.Array, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns when a moving coordinate enters and leaves -half to half, within the times `low` to `high`."""
    slow = jnp.abs(speed) < 1e-9  # any times serve: the coordinate does not change, or the integral is 0
    safe = jnp.where(slow, 1.0, speed)
    one, two = ((-half - place) / safe, (half - place) / safe)
    one, two = jnp.where(slow, -1.0, jnp.minimum(one, two)), jnp.where(slow, 2.0, jnp.maximum(one, two))
    return jnp.clip(one, low, high), jnp.clip(two, low, high)
