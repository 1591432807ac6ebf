"""Moves everything in a scene together: points, boxes, tracks, lines, poses and cameras.

A *motion* is a rotation about the z axis, possibly mirrored, then a scaling and a shift: x -> scale * turn @ x + shift.
Poses stay rigid: a mirrored box or camera gets a mirrored frame of its own, and a scaled one another position.
"""

import dataclasses
import functools
from typing import Any, Self

import numpy as np

from engine.augmentation.entries import array, described, entry, mask, replaced
from engine.augmentation.scene import Boxes, Camera, Lines, Points, Scene, Tracks
from engine.base.errors import DataError
from engine.data.examples import Example

MIRROR_Y = np.diag([1.0, -1.0, 1.0])  # of the frame of a box, whose x axis points ahead
MIRROR_X = np.diag([-1.0, 1.0, 1.0])  # of the frame of a camera, whose x axis points to the right


@dataclasses.dataclass(frozen=True)
class Motion:
    """A rotation or reflection about the vertical axis, a scaling and a shift of the ego frame, in float64."""

    turn: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    """Orthogonal, `[3, 3]`; z stays z."""
    scale: float = 1.0
    shift: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))

    @classmethod
    def rotation(cls, angle: float) -> Self:
        """Returns a rotation by radians, counter-clockwise from above."""
        turn = np.eye(3)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return cls(turn)

    @classmethod
    def flip(cls, x: bool, y: bool) -> Self:
        """Returns a change of the sign of x, of y, or of both."""
        return cls(np.diag([-1.0 if x else 1.0, -1.0 if y else 1.0, 1.0]))

    @functools.cached_property
    def mirrors(self) -> bool:
        """Whether left and right change places."""
        return bool(np.linalg.det(self.turn) < 0)

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """The affine map, float64 `[4, 4]`."""
        found = np.eye(4)
        found[:3, :3], found[:3, 3] = self.scale * self.turn, self.shift
        return found

    @property
    def inverse(self) -> "Motion":
        """The motion back."""
        back = self.turn.T
        return Motion(back, 1 / self.scale, -(back @ self.shift) / self.scale)


def move(example: Example, scene: Scene, motion: Motion, where: str) -> Example:
    """Returns an example with everything that a scene describes moved.

    The calibration of cameras follows, so that points are seen at the same pixels. If left and right change places,
    images are mirrored too, and the pixels with them.

    Raises:
        DataError: an entry is missing, or has another shape or dtype; `where` begins the text.
    """
    mover = _Mover(example, motion, where)
    for points in scene.points:
        mover.points(points)
    for boxes in scene.boxes:
        mover.boxes(boxes)
    for tracks in scene.tracks:
        mover.tracks(tracks)
    for lines in scene.lines:
        mover.lines(lines)
    for camera in scene.cameras:
        mover.camera(camera)
    for path in scene.poses:
        mover.pose(path, None, None)
    for path in scene.world:
        mover.world(path)
    return replaced(example, mover.changes)


class _Mover:
    """Collects the moved entries of an example in `changes`, by path."""

    def __init__(self, example: Example, motion: Motion, where: str):
        self.example, self.motion, self.where = example, motion, where
        self.changes: dict[str, Any] = {}

    def _array(self, path: str, shape: str, columns: tuple[int, ...], least: int = 1) -> np.ndarray:
        return array(self.example, path, self.where, shape, columns, least=least)

    def _valid(self, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
        return mask(self.example, path, self.where, shape) if path else None

    def _set(self, path: str, old: np.ndarray, new: np.ndarray, valid: np.ndarray | None) -> None:
        """Sets an entry; where it is not valid, it stays as it is."""
        if valid is not None and not valid.all():
            new = np.where(valid.reshape(valid.shape + (1,) * (new.ndim - valid.ndim)), new, old)
        self.changes[path] = new.astype(old.dtype, copy=False)

    def points(self, points: Points) -> None:
        least = max([points.coordinates, *(column + 2 for column in points.velocities)])
        shape = f"[..., points, {least} or more]"
        old = self._array(points.entry, shape, (-least,), 2)
        valid = self._valid(points.valid, old.shape[:-1])
        affine = self.motion.matrix
        turn = affine[:2, :2]
        if points.to_ego:
            pose = self._array(points.to_ego, "[..., 4, 4]", (4, 4)).astype(np.float64)
            affine = np.linalg.inv(pose) @ affine @ pose
            level = _level(pose)  # a velocity without z is one in a horizontal plane, also of a sensor with a tilt
            turn = np.swapaxes(level, -1, -2) @ turn @ level
        new = old.copy()
        _transform(new[..., : points.coordinates], affine)
        for column in points.velocities:
            _turn(new[..., column : column + 2], turn)
        self._set(points.entry, old, new, valid)

    def boxes(self, boxes: Boxes) -> None:
        valid = None
        if boxes.valid:
            first = entry(self.example, boxes.table or boxes.center or boxes.pose, self.where)
            last = 2 if not (boxes.table or boxes.center) else 1
            valid = self._valid(boxes.valid, np.shape(first)[: np.ndim(first) - last])
        if boxes.table:
            self._box_table(boxes.table, valid)
        if boxes.center:
            self.position(boxes.center, "[..., boxes, 2 or 3]", valid)
        if boxes.size:
            self.size(boxes.size, "[..., boxes, 3]", valid)
        if boxes.yaw:
            self.angle(boxes.yaw, "[..., boxes]", valid)
        if boxes.velocity:
            self.vector(boxes.velocity, "[..., boxes, 2 or 3]", valid)
        if boxes.pose:
            self.pose(boxes.pose, MIRROR_Y, valid)

    def _box_table(self, path: str, valid: np.ndarray | None) -> None:
        old = self._array(path, "[..., boxes, 7 or more]", (-7,), 2)
        new = old.copy()
        _transform(new[..., :3], self.motion.matrix)
        new[..., 3:6] *= self.motion.scale
        new[..., 6] = self._turned(old[..., 6])
        if new.shape[-1] >= 9:
            _turn(new[..., 7:9], self.motion.matrix[:2, :2])
        self._set(path, old, new, valid)

    def tracks(self, tracks: Tracks) -> None:
        shape = "[..., agents, time, 2 or 3]"
        position = self._array(tracks.position, shape, (-2,), 3)
        valid = self._valid(tracks.valid, position.shape[:-1])
        self.position(tracks.position, shape, valid)
        if tracks.heading:
            self.angle(tracks.heading, "[..., agents, time]", valid)
        if tracks.velocity:
            self.vector(tracks.velocity, shape, valid)
        if tracks.size:
            by_time = self._array(tracks.size, "[..., agents, 3]", (3,), 2).ndim == position.ndim
            self.size(tracks.size, "[..., agents, 3]", valid if by_time else None)

    def lines(self, lines: Lines) -> None:
        shape = "[..., points, 2 or 3]"
        position = self._array(lines.position, shape, (-2,), 2)
        valid = self._valid(lines.valid, position.shape[:-1])
        self.position(lines.position, shape, valid)
        if lines.direction:
            self.vector(lines.direction, shape, valid, scale=False)

    def camera(self, camera: Camera) -> None:
        mirror = MIRROR_X if self.motion.mirrors else None
        if camera.to_ego:
            self.pose(camera.to_ego, mirror, None)
        elif camera.from_ego:
            old = self._array(camera.from_ego, "[..., 4, 4]", (4, 4))
            moved = self._moved_pose(np.linalg.inv(old.astype(np.float64)), mirror)
            self._set(camera.from_ego, old, np.linalg.inv(moved), None)
        if mirror is not None:
            self.changes |= mirrored_images(self.example, camera, self.where)

    def position(self, path: str, shape: str, valid: np.ndarray | None) -> None:
        old = self._array(path, shape, (-2,))
        self._check_vector(path, old, shape)
        new = old.copy()
        _transform(new, self.motion.matrix)
        self._set(path, old, new, valid)

    def vector(self, path: str, shape: str, valid: np.ndarray | None, *, scale: bool = True) -> None:
        old = self._array(path, shape, (-2,))
        self._check_vector(path, old, shape)
        new, size = old.copy(), old.shape[-1]
        _turn(new, (self.motion.scale if scale else 1) * self.motion.turn[:size, :size])
        self._set(path, old, new, valid)

    def _check_vector(self, path: str, found: np.ndarray, shape: str) -> None:
        if found.shape[-1] > 3:
            raise DataError(f"{self.where}: {path} is {described(found)}, allowed is a floating-point array {shape}.")

    def size(self, path: str, shape: str, valid: np.ndarray | None) -> None:
        old = self._array(path, shape, (3,))
        if self.motion.scale != 1:
            self._set(path, old, old * old.dtype.type(self.motion.scale), valid)

    def angle(self, path: str, shape: str, valid: np.ndarray | None) -> None:
        old = self._array(path, shape, ())
        self._set(path, old, self._turned(old), valid)

    def _turned(self, angles: np.ndarray) -> np.ndarray:
        """Returns the angles after the motion, float64, from -pi to below pi."""
        by = np.arctan2(self.motion.turn[1, 0], self.motion.turn[0, 0])
        wide = angles.astype(np.float64)
        return wrapped(by - wide if self.motion.mirrors else by + wide)

    def pose(self, path: str, mirror: np.ndarray | None, valid: np.ndarray | None) -> None:
        """Moves poses; if left and right change places, their own frame is mirrored by `mirror`."""
        old = self._array(path, "[..., 4, 4]", (4, 4))
        self._set(path, old, self._moved_pose(old.astype(np.float64), mirror), valid)

    def _moved_pose(self, pose: np.ndarray, mirror: np.ndarray | None) -> np.ndarray:
        new = self.motion.matrix @ pose
        new[..., :3, :3] /= self.motion.scale
        if self.motion.mirrors:  # a sensor without a side of its own has a y axis like a box
            new[..., :3, :3] = new[..., :3, :3] @ (MIRROR_Y if mirror is None else mirror)
        return new

    def world(self, path: str) -> None:
        old = self._array(path, "[..., 4, 4]", (4, 4))
        new = self.motion.matrix @ old.astype(np.float64) @ self.motion.inverse.matrix
        self._set(path, old, new, None)


def mirrored_images(example: Example, camera: Camera, where: str) -> dict[str, Any]:
    """Returns the entries of a camera whose images are mirrored: images, aligned entries and intrinsics, by path."""
    image = entry(example, camera.image, where)
    if not isinstance(image, np.ndarray) or image.ndim < 3 or image.shape[-1] != 3:
        raise DataError(f"{where}: {camera.image} is {described(image)}, allowed is [..., height, width, 3].")
    changes = {camera.image: image[..., ::-1, :]}
    for path in camera.aligned:
        found = entry(example, path, where)
        if not isinstance(found, np.ndarray) or found.shape[-2:] != image.shape[-3:-1]:
            size = " x ".join(map(str, image.shape[-3:-1]))
            raise DataError(f"{where}: {path} is {described(found)}, but its image has {size} pixels.")
        changes[path] = found[..., ::-1]
    if camera.intrinsics:
        old = array(example, camera.intrinsics, where, "[..., 3, 3]", (3, 3))
        new = old.copy()
        last = image.shape[-2] - (1 if camera.pixels == "centers" else 0)  # of the axis of u, which runs to 0 instead
        new[..., 0, 1] *= -1
        new[..., 0, 2] = last - old[..., 0, 2]
        changes[camera.intrinsics] = new
    return changes


def wrapped(angles: np.ndarray) -> np.ndarray:
    """Returns angles from -pi to below pi."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def _level(pose: np.ndarray) -> np.ndarray:
    """Returns the rotations about the vertical axis, `[..., 2, 2]`, of poses `[..., 4, 4]`."""
    cos, sin = pose[..., 0, 0], pose[..., 1, 0]
    length = np.hypot(cos, sin)
    cos, sin = cos / length, sin / length
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _transform(x: np.ndarray, affine: np.ndarray) -> None:
    """Applies affine maps `[..., 4, 4]` to positions `[..., points, 2 or 3]` in place, in their dtype."""
    size = x.shape[-1]
    _turn(x, affine[..., :size, :size])
    shift = affine[..., None, :size, 3].astype(x.dtype) if affine.ndim > 2 else affine[:size, 3].astype(x.dtype)
    if shift.any():
        x += shift


def _turn(x: np.ndarray, matrix: np.ndarray) -> None:
    """Multiplies vectors `[..., vectors, size]` with matrices `[..., size, size]` in place, in their dtype.

    Whole columns are multiplied: a rotation of 100,000 points takes 0.6 ms, and 9.5 ms as a product of matrices.
    """
    kind = np.promote_types(x.dtype, np.float32)
    columns = [x[..., column].astype(kind) for column in range(x.shape[-1])]  # copies, since x changes below
    for row in range(x.shape[-1]):
        weights = matrix[row].tolist() if matrix.ndim == 2 else list(np.moveaxis(matrix[..., row, :], -1, 0))
        pairs = zip(columns, weights, strict=True)
        if matrix.ndim == 2:
            terms = [column if weight == 1 else column * weight for column, weight in pairs if weight]
        else:
            terms = [column * weight[..., None].astype(kind) for column, weight in pairs]
        x[..., row] = sum(terms[1:], terms[0])
