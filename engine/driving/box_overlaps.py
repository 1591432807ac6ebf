"""Overlaps of pairs of boxes on the host, in float64: in an image, and of turned boxes on the ground and in space."""

import numpy as np

_BLOCK = 8192  # pairs of turned boxes at a time: 64 corners of 16 bytes each, 8 MB


def image_overlaps(a: np.ndarray, b: np.ndarray, of_first: bool = False) -> np.ndarray:
    """Returns the intersection over the union of boxes along the axes, float64 `[pairs]`.

    Args:
        a: boxes (x0, y0, x1, y1), float64 `[pairs, 4]`.
        b: likewise.
        of_first: whether to divide by the area of `a` instead of the union.
    """
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    both = np.where((sides > 0).all(1), sides.prod(1), 0)
    own, other = (box[:, 2:] - box[:, :2] for box in (a, b))
    whole = own.prod(1) if of_first else own.prod(1) + other.prod(1) - both
    return np.divide(both, whole, out=np.zeros(len(a)), where=both > 0)


def camera_box_overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the intersections over the unions on the ground and in space, float64 `[pairs]` each.

    A box without an area on the ground overlaps nothing.

    Args:
        a: boxes as in KITTI, float64 `[pairs, 7]`: x, y, z of the center of the bottom in the frame of the camera,
            whose y points down, height, width, length in metres, and the angle about y.
        b: likewise.
    """
    ground, space = np.zeros(len(a)), np.zeros(len(a))
    apart = np.hypot(a[:, 0] - b[:, 0], a[:, 2] - b[:, 2])
    reach = (np.hypot(a[:, 4], a[:, 5]) + np.hypot(b[:, 4], b[:, 5])) / 2
    near = np.flatnonzero((apart < reach) & (a[:, 3:6] > 0).all(1) & (b[:, 3:6] > 0).all(1))
    for start in range(0, len(near), _BLOCK):
        some = near[start : start + _BLOCK]
        one, other = a[some], b[some]
        both = _shared_areas(one, other)
        areas = one[:, 4] * one[:, 5], other[:, 4] * other[:, 5]
        ground[some] = both / (areas[0] + areas[1] - both)
        lowest = np.minimum(one[:, 1], other[:, 1])  # y points down
        height = lowest - np.maximum(one[:, 1] - one[:, 3], other[:, 1] - other[:, 3])
        volume = both * np.maximum(height, 0)
        space[some] = volume / (areas[0] * one[:, 3] + areas[1] * other[:, 3] - volume)
    return ground, space


def _shared_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the areas that pairs of boxes share on the ground, `[pairs]`.

    The corners of `a` are cut off at the four sides of `b`, in the frame of `b`.
    """
    half = a[:, [5, 4]] / 2
    corners = half[:, None] * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    turn = a[:, 6] - b[:, 6]
    corners = _turned(corners, turn) + _turned((a[:, [0, 2]] - b[:, [0, 2]])[:, None], -b[:, 6])
    for axis, side in ((0, 5), (1, 4)):
        corners = _cut(corners, axis, b[:, side] / 2)
        corners[..., axis] *= -1
        corners = _cut(corners, axis, b[:, side] / 2)
    x, y = corners[..., 0], corners[..., 1]
    return np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)) / 2


def _turned(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Returns points (x, z) `[pairs, n, 2]`, turned by angles `[pairs]` about the y axis, which points down."""
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, z = points[..., 0], points[..., 1]
    return np.stack([cos * x + sin * z, cos * z - sin * x], -1)


def _cut(points: np.ndarray, axis: int, limit: np.ndarray) -> np.ndarray:
    """Returns convex polygons without what is above `limit` `[pairs]` along an axis, with twice as many corners.

    Corners outside move onto the line of the cut. They and repeated corners add nothing to the area.
    """
    limit = limit[:, None]
    after = np.roll(points, -1, 1)
    begin, end = points[..., axis], after[..., axis]
    crosses = (begin > limit) != (end > limit)
    share = np.divide(limit - begin, end - begin, out=np.zeros_like(begin), where=crosses)
    kept = after.copy()
    kept[..., axis] = np.minimum(end, limit)
    between = points + share[..., None] * (after - points)
    between[..., axis] = limit
    return np.stack([np.where(crosses[..., None], between, kept), kept], 2).reshape(len(points), -1, 2)
