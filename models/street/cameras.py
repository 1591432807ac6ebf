"""Six cameras around a vehicle: their calibration, and what each pixel sees, by casting its ray at boxes.

The cameras stand and look as those of nuScenes (Caesar et al. 2020, arXiv:1903.11027): five see 70 degrees and the one
at the back 110. Images are cut at the top and the bottom, so they are wider than those of nuScenes. The frame of a
camera is x to the right, y down and z ahead; the frame of the vehicle is x ahead, y to the left and z up.
"""

import dataclasses

import numpy as np

from .scenes import rotation

CAMERAS = ("front_left", "front", "front_right", "back_left", "back", "back_right")
YAWS = np.deg2rad([55.0, 0.0, -55.0, 110.0, 180.0, -110.0])
FIELDS = np.deg2rad([70.0, 70.0, 70.0, 70.0, 110.0, 70.0])  # horizontal fields of view
PLACES = np.array(
    [[1.5, 0.5, 1.5], [1.7, 0.0, 1.5], [1.5, -0.5, 1.5], [1.0, 0.5, 1.6], [0.0, 0.0, 1.6], [1.0, -0.5, 1.6]]
)  # metres in the frame of the vehicle
ROWS, COLUMNS, HORIZON = 48, 128, 18  # pixels of an image; the row of the horizon
NEAR, FAR = 0.3, 80.0  # metres ahead of a camera

EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])


@dataclasses.dataclass
class Rig:
    """Calibration of the cameras: `intrinsics` `[6, 3, 3]`, in pixels, and `poses` `[6, 4, 4]`, camera to vehicle."""

    intrinsics: np.ndarray
    poses: np.ndarray

    @classmethod
    def mounted(cls, rng: np.random.Generator | None = None) -> "Rig":
        """Returns the cameras of a vehicle, each turned by about a degree with `rng`, as no two mounts are equal."""
        focal = COLUMNS / 2 / np.tan(FIELDS / 2)
        intrinsics = np.zeros((6, 3, 3))
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
        intrinsics[:, :, 2] = [COLUMNS / 2 - 0.5, HORIZON - 0.5, 1]
        turns = np.zeros((6, 3)) if rng is None else rng.normal(0, np.deg2rad(1), (6, 3)) * [1, 0.5, 0.5]
        c, s = np.cos(YAWS + turns[:, 0]), np.sin(YAWS + turns[:, 0])
        poses = np.zeros((6, 4, 4))
        poses[:, :2, 0] = np.stack([s, -c], -1)
        poses[:, 2, 1] = -1
        poses[:, :2, 2] = np.stack([c, s], -1)
        pitch, roll = turns[:, 1], turns[:, 2]
        one, none = np.ones(6), np.zeros(6)
        tilt = np.array(
            [[one, none, none], [none, np.cos(pitch), -np.sin(pitch)], [none, np.sin(pitch), np.cos(pitch)]]
        )
        turn = np.array([[np.cos(roll), -np.sin(roll), none], [np.sin(roll), np.cos(roll), none], [none, none, one]])
        poses[:, :3, :3] = poses[:, :3, :3] @ tilt.transpose(2, 0, 1) @ turn.transpose(2, 0, 1)
        poses[:, :3, 3] = PLACES
        poses[:, 3, 3] = 1
        return cls(intrinsics, poses)

    def rays(self) -> np.ndarray:
        """Returns the direction of each pixel in the frame of the vehicle, `[6, ROWS, COLUMNS, 3]`, 1 m ahead."""
        v, u = np.mgrid[:ROWS, :COLUMNS]
        pixels = np.stack([u, v, np.ones_like(u)], -1)
        turn = self.poses[:, :3, :3] @ np.linalg.inv(self.intrinsics)
        return (pixels.reshape(-1, 3) @ turn.swapaxes(1, 2)).reshape(6, ROWS, COLUMNS, 3)

    def seen(self, points: np.ndarray) -> np.ndarray:
        """Returns points `[..., 3]` of the frame of the vehicle in the frame of each camera, `[6, ..., 3]`."""
        offset = points - self.poses[:, :3, 3].reshape(6, *[1] * (points.ndim - 1), 3)
        return np.einsum("c...i,cij->c...j", offset, self.poses[:, :3, :3])


def corners(boxes: np.ndarray) -> np.ndarray:
    """Returns the corners of boxes (x, y, z of the bottom, l, w, h, yaw), `[boxes, 8, 3]`: the bottom, then the top."""
    flat = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * boxes[:, None, 3:5] / 2
    flat = boxes[:, None, :2] + np.einsum("nij,nkj->nki", rotation(boxes[:, 6]), flat)
    low = np.broadcast_to(boxes[:, None, 2:3], (len(boxes), 4, 1))
    bottom = np.concatenate([flat, low], -1)
    return np.concatenate([bottom, bottom + boxes[:, None, 5:6] * [0, 0, 1]], 1)


def cast(boxes: np.ndarray, rig: Rig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Casts the ray of every pixel at boxes.

    Returns:
        The depths of the nearest hits in metres ahead of the camera, `[6, ROWS, COLUMNS]`, infinite without a hit; the
        index of the box, -1 without a hit; and the normal of the face that is hit, `[6, ROWS, COLUMNS, 3]`.
    """
    camera, box, pixel = _pairs(boxes, rig)
    rays = rig.rays().reshape(-1, 3).astype(np.float32)
    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    half = boxes[:, 3:6] / 2
    x, y, z = np.moveaxis(rig.poses[:, None, :3, 3] - boxes[:, :3] - half * [0, 0, 1], -1, 0)
    origin = np.stack([c * x + s * y, c * y - s * x, z], -1).astype(np.float32)[camera, box]  # in the frame of the box
    ray, (cos, sin), half = rays[pixel].T, np.stack([c, s]).astype(np.float32)[:, box], half.astype(np.float32)[box]
    near, far = np.full(len(pixel), NEAR, np.float32), np.full(len(pixel), FAR, np.float32)
    axis, turned = np.zeros(len(pixel), np.int8), (cos * ray[0] + sin * ray[1], cos * ray[1] - sin * ray[0], ray[2])
    for k, along in enumerate(turned):
        inverse = 1 / np.where(np.abs(along) < 1e-6, np.float32(1e-6), along)
        middle, reach = -origin[:, k] * inverse, half[:, k] * np.abs(inverse)
        enter = middle - reach
        axis[enter > near] = k
        near, far = np.maximum(near, enter), np.minimum(far, middle + reach)
    hit = (near < far) & (near > NEAR)
    pixel, box, near, axis = pixel[hit], box[hit], near[hit], axis[hit]
    side = -np.sign(np.stack(turned)[axis, np.flatnonzero(hit)])
    last = np.argsort(-near, kind="stable")  # the nearest is written last
    pixel, box, near, axis, side = pixel[last], box[last], near[last], axis[last], side[last]
    depth, owner = np.full(len(rays), np.inf, np.float32), np.full(len(rays), -1)
    face = np.zeros((len(rays), 3), np.float32)
    depth[pixel], owner[pixel] = near, box
    along = np.stack([np.stack([c, s, 0 * c], -1), np.stack([-s, c, 0 * c], -1), np.tile([0.0, 0, 1], (len(c), 1))], 1)
    face[pixel] = along[box, axis] * side[:, None]
    shape = (6, ROWS, COLUMNS)
    return depth.reshape(shape), owner.reshape(shape), face.reshape(*shape, 3)


def _pairs(boxes: np.ndarray, rig: Rig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a camera, a box and a pixel of all images for every pixel in the rectangle around a box in an image."""
    points = rig.seen(corners(boxes))  # [6, boxes, 8, 3]
    first, second = points[:, :, EDGES[:, 0]], points[:, :, EDGES[:, 1]]
    low, high = first[..., 2:] - NEAR, second[..., 2:] - NEAR
    cut = low * high < 0  # an edge through the plane in front of the camera
    at = first + (second - first) * np.where(cut, low / np.where(cut, low - high, 1), 0)
    points, valid = np.concatenate([points, at], 2), np.concatenate([points[..., 2:] > NEAR, cut], 2)
    scaled = points[..., :2] / np.where(valid, points[..., 2:], 1) * rig.intrinsics[:, 0, 0].reshape(6, 1, 1, 1)
    scaled = scaled + rig.intrinsics[:, None, None, :2, 2]
    limit = np.array([COLUMNS, ROWS])
    low = np.ceil(np.where(valid, scaled, np.inf).min(2)).clip(0, limit).astype(int)  # [6, boxes, (u, v)]
    high = (np.floor(np.where(valid, scaled, -np.inf).max(2)) + 1).clip(0, limit).astype(int)
    size = (high - low).clip(0)
    size[points[..., 2].min(2) > FAR] = 0
    camera, box = np.nonzero(size.prod(-1))
    low, size = low[camera, box], size[camera, box]
    row = np.repeat(np.arange(len(box)), size[:, 1])
    v = low[row, 1] + np.arange(len(row)) - np.repeat(np.cumsum(size[:, 1]) - size[:, 1], size[:, 1])
    start = (camera[row] * ROWS + v) * COLUMNS + low[row, 0]
    width = size[row, 0]
    pair = np.repeat(np.arange(len(row)), width)
    pixel = start[pair] + np.arange(len(pair)) - np.repeat(np.cumsum(width) - width, width)
    return camera[row[pair]], box[row[pair]], pixel
