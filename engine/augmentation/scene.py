"""Descriptions of an example: which of its entries are points, boxes, tracks, lines, cameras and poses.

All geometry is in metres in the *ego frame*: x ahead, y to the left, z up. Entries are named by path. Leading
dimensions, such as the time of a window of frames, may precede those that are described here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.base.errors import DataError, did_you_mean

ORDERS = ("length, width, height", "width, length, height")
"""Allowed orders of the columns of the sizes of boxes."""
PIXELS = ("centers", "edges")


@dataclasses.dataclass(frozen=True)
class Points:
    """Points, such as a lidar or radar sweep: a floating-point array `[..., points, columns]`."""

    entry: str
    coordinates: int = 3
    """First columns that are x, y and, if there are 3, z."""
    velocities: tuple[int, ...] = ()
    """First column of each velocity vx, vy, such as (6, 8) of the radar points of nuScenes."""
    age: int | None = None
    """Column of the seconds since the point was measured."""
    to_ego: str = ""
    """Pose `[..., 4, 4]` of the frame of the points, which stays; by default they are in the ego frame."""
    valid: str = ""
    """Mask `[..., points]`; points that are not valid stay as they are."""


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Boxes: one array for all properties (`table`), or one for each, or poses and sizes, as the readers yield them."""

    table: str = ""
    """`[..., boxes, 7 or more]`: x, y, z, length, width, height, yaw and, if there are 9 or more, vx, vy."""
    center: str = ""
    """`[..., boxes, 2 or 3]`."""
    size: str = ""
    """`[..., boxes, 3]`, in the order `size_order`."""
    yaw: str = ""
    """`[..., boxes]`: radians, counter-clockwise from the x axis."""
    velocity: str = ""
    """`[..., boxes, 2 or 3]`: metres per second."""
    pose: str = ""
    """`[..., boxes, 4, 4]`: from the frame of the box, with the x axis ahead, to the ego frame."""
    valid: str = ""
    """Mask `[..., boxes]`; boxes that are not valid stay as they are."""
    others: tuple[str, ...] = ()
    """Other entries with one row for each box, such as classes."""
    size_order: str = ORDERS[0]
    z: str = "center"
    """Whether z of `table` or `center` is that of the "center" or of the "bottom" of the box."""

    def __post_init__(self) -> None:
        _check_choice("Boxes.size_order", self.size_order, ORDERS)
        _check_choice("Boxes.z", self.z, ("center", "bottom"))
        if not (self.table or self.center or self.pose):
            raise DataError("augmentation: Boxes names no positions. Give one of table, center and pose.")

    @property
    def entries(self) -> tuple[str, ...]:
        """All entries with one row for each box, but the mask."""
        return tuple(
            name
            for name in (self.table, self.center, self.size, self.yaw, self.velocity, self.pose, *self.others)
            if name
        )


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Tracks of agents over time."""

    position: str
    """`[..., agents, time, 2 or 3]`."""
    heading: str = ""
    """`[..., agents, time]`: radians, counter-clockwise from the x axis."""
    velocity: str = ""
    """`[..., agents, time, 2 or 3]`."""
    size: str = ""
    """`[..., agents, time, 3]` or `[..., agents, 3]`, in any order."""
    valid: str = ""
    """Mask `[..., agents, time]`; states that are not valid stay as they are."""
    step_s: float = 0.1
    """Seconds between two steps."""


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines of a map: polylines or polygons."""

    position: str
    """`[..., lines, points, 2 or 3]`, or `[..., points, 2 or 3]`."""
    direction: str = ""
    """Vectors of the same shape, such as tangents: turned and mirrored, but not scaled."""
    valid: str = ""
    """Mask of the shape of `position` without its last dimension; points that are not valid stay as they are."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """Images with their calibration; several cameras with images of one size may be stacked."""

    image: str
    """`[..., height, width, 3]`, uint8, or floating-point from 0 to 1."""
    intrinsics: str = ""
    """`[..., 3, 3]`: to pixels from the frame of the camera, with x to the right, y down, z ahead."""
    to_ego: str = ""
    """Pose `[..., 4, 4]` of the camera; or `from_ego`, its inverse."""
    from_ego: str = ""
    aligned: tuple[str, ...] = ()
    """Other entries `[..., height, width]` with one value for each pixel, such as labels."""
    stacked: bool = False
    """Whether the dimension before the height numbers cameras: `[..., cameras, height, width, 3]`."""
    pixels: str = "centers"
    """What whole numbers of a pixel coordinate mean: "centers" of pixels, as in `engine.plot`, or their "edges", as in
    the intrinsics that the readers scale: the center of the first pixel is then 0.5."""

    def __post_init__(self) -> None:
        _check_choice("Camera.pixels", self.pixels, PIXELS)
        if self.to_ego and self.from_ego:
            raise DataError(f"augmentation: Camera {self.image}: give to_ego or from_ego, not both.")


@dataclasses.dataclass(frozen=True)
class Scene:
    """Description of an example. Each field takes one description or several, as objects or as dicts of their fields.

    An entry of the example that is not described stays as it is. A plain name stands for `Points`, `Tracks`, `Lines`
    or `Camera` with this entry, and for `Boxes` with this table.
    """

    points: Any = ()
    """`Points`."""
    boxes: Any = ()
    """`Boxes`."""
    tracks: Any = ()
    """`Tracks`."""
    lines: Any = ()
    """`Lines`."""
    cameras: Any = ()
    """`Camera`."""
    poses: tuple[str, ...] = ()
    """Poses `[..., 4, 4]` of other sensors: from their frame to the ego frame."""
    world: tuple[str, ...] = ()
    """Poses `[..., 4, 4]` of the ego frame in the world. The world is rotated, scaled and mirrored about its origin, so
    that motions from frame to frame remain right."""
    times: tuple[str, ...] = ()
    """Times in seconds, floating-point arrays of any shape."""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            several = given if isinstance(given, list | tuple) else (given,)
            object.__setattr__(self, name, tuple(_parsed(item, kind, f"Scene.{name}") for item in several))
        for name in ("poses", "world", "times"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for points in self.points:
            if points.to_ego and points.to_ego in self.poses:
                raise DataError(
                    f"augmentation: Scene.poses has {points.to_ego!r}, which is Points.to_ego of {points.entry}: "
                    "either the pose of a sensor moves or its points. Leave it out of poses."
                )

    @classmethod
    def parse(cls, given: Any) -> "Scene":
        """Returns a description: the object itself, or that of a dict of its fields. Raises DataError."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise DataError(f"augmentation: scene is a {type(given).__name__}, allowed are a Scene and a dict.")
        return _built(cls, given, "scene")


_KINDS = {"points": Points, "boxes": Boxes, "tracks": Tracks, "lines": Lines, "cameras": Camera}


def _parsed(given: Any, kind: type[Any], where: str) -> Any:
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        return kind(given)
    if isinstance(given, Mapping):
        return _built(kind, given, where)
    raise DataError(
        f"augmentation: {where}: found a {type(given).__name__}, allowed are {kind.__name__}, a dict of its fields, "
        "and the name of an entry."
    )


def _built(kind: type[Any], given: Mapping[str, Any], where: str) -> Any:
    """Returns an object of a dict of its fields."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            near = did_you_mean(str(name), fields)
            raise DataError(f"augmentation: {where} has no field {name!r}. It has {', '.join(fields)}.{near}")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise DataError(f"augmentation: {where}: {name} is missing. Name the entry of the example.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _check_choice(where: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        texts = " or ".join(map(repr, allowed))
        raise DataError(f"augmentation: {where} = {found!r}: allowed is {texts}.{did_you_mean(found, allowed)}")
