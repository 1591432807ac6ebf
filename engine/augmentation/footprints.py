"""Geometry of boxes from above: which rotated rectangles overlap, and which points lie in which box.

Boxes are float64 `[boxes, 7]`: x, y, z of the center, length, width, height and yaw.
"""

import numpy as np

from engine.augmentation.entries import array
from engine.augmentation.scene import ORDERS, Boxes
from engine.base.errors import DataError
from engine.data.examples import Example


def box_geometry(example: Example, boxes: Boxes, where: str) -> np.ndarray:
    """Returns the boxes of an example, float64 `[boxes, 7]`.

    Raises:
        DataError: an entry is missing or has another shape, or center, size and yaw are not all known.
    """
    if boxes.table:
        table = array(example, boxes.table, where, "[boxes, 7 or more]", (-7,), least=2)
        _check_flat(boxes.table, table, 2, where)
        found = table[:, :7].astype(np.float64)
    else:
        if not boxes.size or not (boxes.pose or boxes.yaw):
            raise DataError(f"{where}: the boxes need a size, and a yaw or a pose. Name these entries in Boxes.")
        size = array(example, boxes.size, where, "[boxes, 3]", (3,))
        found = np.empty((len(size), 7))
        if boxes.pose:
            pose = array(example, boxes.pose, where, "[boxes, 4, 4]", (4, 4))
            _check_flat(boxes.pose, pose, 3, where)
            found[:, :3], found[:, 6] = pose[:, :3, 3], np.arctan2(pose[:, 1, 0], pose[:, 0, 0])
        else:
            center = array(example, boxes.center, where, "[boxes, 3]", (3,))
            _check_flat(boxes.center, center, 2, where)
            found[:, :3], found[:, 6] = center, array(example, boxes.yaw, where, "[boxes]", ())
        found[:, 3:6] = size if boxes.size_order == ORDERS[0] else size[:, [1, 0, 2]]
    if boxes.z == "bottom" and not (boxes.pose and not boxes.table):
        found[:, 2] += found[:, 5] / 2
    return found


def _check_flat(path: str, found: np.ndarray, dimensions: int, where: str) -> None:
    if found.ndim != dimensions:
        raise DataError(
            f"{where}: {path} has {found.ndim} dimensions instead of {dimensions}. Objects cannot be inserted into "
            "windows of frames: augment single frames."
        )


def overlaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Returns which boxes overlap from above, bool `[n, m]`, for boxes `[n, 7]` and `[m, 7]`; touching is no overlap.

    Two convex shapes are apart if and only if they are apart along the normal of one of their edges (separating axes;
    Gottschalk et al., "OBBTree", 1996). So the test is exact, up to rounding in float64.
    """
    apart = np.zeros((len(one), len(two)), bool)
    shift = two[None, :, :2] - one[:, None, :2]
    turn = two[None, :, 6] - one[:, None, 6]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    half, other = one[:, None, 3:5] / 2, two[None, :, 3:5] / 2
    for yaw, own, reach in (
        (one[:, None, 6], half, (other[..., 0] * cos + other[..., 1] * sin, other[..., 0] * sin + other[..., 1] * cos)),
        (two[None, :, 6], other, (half[..., 0] * cos + half[..., 1] * sin, half[..., 0] * sin + half[..., 1] * cos)),
    ):
        c, s = np.cos(yaw), np.sin(yaw)
        apart |= np.abs(c * shift[..., 0] + s * shift[..., 1]) >= own[..., 0] + reach[0]
        apart |= np.abs(c * shift[..., 1] - s * shift[..., 0]) >= own[..., 1] + reach[1]
    return ~apart


def inside(points: np.ndarray, box: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Returns which points `[points, 3]` lie in a box `[7]` with a margin on each side, bool `[points]`."""
    half = box[3:6] / 2 + margin
    found = np.abs(points[:, 2] - box[2]) <= half[2]
    near = np.flatnonzero(found)  # few points are as high as the box and near it, and the rest of the test is slower
    shift = points[near, :2] - box[:2]
    near_box = (shift**2).sum(-1) <= half[0] ** 2 + half[1] ** 2
    near, shift = near[near_box], shift[near_box]
    c, s = np.cos(box[6]), np.sin(box[6])
    within = np.abs(c * shift[:, 0] + s * shift[:, 1]) <= half[0]
    within &= np.abs(c * shift[:, 1] - s * shift[:, 0]) <= half[1]
    found[:] = False
    found[near[within]] = True
    return found
