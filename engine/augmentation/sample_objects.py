"""`SampleObjects`: inserts objects of other examples, with their points, where they collide with no box.

This is the ground-truth sampling of Yan, Mao and Li, "SECOND: Sparsely Embedded Convolutional Detection" (2018),
section 3.2.2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from engine.augmentation.entries import array, entry, mask, replaced
from engine.augmentation.footprints import box_geometry, inside, overlaps
from engine.augmentation.objects import ObjectDatabase, Reader, build_objects, placed
from engine.augmentation.scene import Points
from engine.augmentation.step import Augmentation
from engine.base.errors import did_you_mean
from engine.data.examples import Example
from engine.data.source import BaseSource

OVERFLOWS = ("error", "count")
INSERTED, COLLIDED, LEFT_OUT = range(3)  # columns of the entry `counts`


@dataclasses.dataclass(frozen=True)
class SampleObjects(Augmentation):
    """Inserts objects of other examples at the places where they were recorded, with their points and labels.

    Objects are drawn without repetition within an example. In the order of the draw, an object is inserted if its box
    overlaps from above with no box of the example and no inserted one. Points of the example within inserted boxes are
    removed first. It uses the first `Points` and the first `Boxes` of the scene, in a single frame.

    Where the boxes or points have a mask `valid`, the arrays keep their lengths, and inserted rows take the places that
    are not valid. Otherwise the arrays become longer, up to `most_boxes` and `most_points`; a padding around the source
    (`engine.Padded`) is removed before and restored afterwards.

    Its parameters are the numbers of the drawn objects, int64 `[objects]`.
    """

    count: int | Mapping[str, int] = 15
    """Number of objects to draw; or label -> number. Collisions leave fewer."""
    label: str = ""
    """Entry with the label of each box, `[boxes]`."""
    least: int = 5
    """Number of points that an object must have."""
    margin: float = 0.0
    """Metres on each side of an inserted box in which points of the example are removed, too."""
    most_boxes: int | None = None
    """Number of boxes that an example may have afterwards, without a mask; likewise `most_points`."""
    most_points: int | None = None
    overflow: str = "error"
    """What happens with an object that has no place in the arrays: "error", or "count", which leaves it out and needs
    `counts`."""
    counts: str = ""
    """Name of a new entry, int32 `[3]`: objects that were inserted, that collided, and that had no place."""
    limit: int | None = None
    """Number of examples whose objects are read; None for all."""
    cache: str | None = None
    """Path of a file that keeps the objects for later starts, with a checksum."""
    objects: ObjectDatabase | None = dataclasses.field(default=None, repr=False, compare=False)
    """The objects; by default, they are read from the source of `engine.augmented`, before its transform."""

    def check(self) -> None:
        if not isinstance(self.count, int | Mapping):
            raise self.error(f"count = {self.count!r}: allowed are a whole number, and a dict of label -> number.")
        if isinstance(self.count, Mapping):
            object.__setattr__(self, "count", {str(label): number for label, number in self.count.items()})
            if not self.label:
                raise self.error(
                    "count names labels, but there is no `label`. Name the entry with the labels of boxes."
                )
        numbers = (
            {"count": self.count}
            if isinstance(self.count, int)
            else {f"count[{k!r}]": v for k, v in self.count.items()}
        )
        numbers |= {"least": self.least, "margin": self.margin}
        for name, found in numbers.items():
            if found < (1 if name == "least" else 0):
                raise self.error(f"{name} = {found}: allowed are numbers from {1 if name == 'least' else 0}.")
        if self.overflow not in OVERFLOWS:
            near = did_you_mean(self.overflow, OVERFLOWS)
            raise self.error(f"overflow = {self.overflow!r}: allowed is {' or '.join(map(repr, OVERFLOWS))}.{near}")
        if self.overflow == "count" and not self.counts:
            raise self.error("overflow = 'count' needs `counts`, the name of the entry that receives the numbers.")

    def prepared(self, source: BaseSource) -> Self:
        reader, scene = self._reader(), self.described
        if scene.cameras:
            raise self.error(
                "the scene has cameras, whose images would not show the inserted objects. To insert them nevertheless, "
                "give it a description of its own without cameras: SampleObjects(..., scene=...)."
            )
        if scene.points[0].coordinates < 3:
            raise self.error(f"{scene.points[0].entry} has no z coordinate. Name points with coordinates = 3.")
        if scene.points[0].to_ego and scene.points[0].velocities:
            raise self.error("points with velocities in the frame of a sensor cannot be moved to another example.")
        objects = self.objects or build_objects(source, reader, self.limit, self.cache)
        if isinstance(self.count, dict):
            for label in self.count:
                if label not in objects.by_label:
                    near = did_you_mean(label, objects.by_label)
                    raise self.error(f"no object has the label {label}. Labels: {', '.join(objects.by_label)}.{near}")
        return dataclasses.replace(self, objects=objects)

    def fingerprint(self) -> str:
        return f"objects {self._objects.fingerprint()}"

    def _reader(self) -> Reader:
        scene = self.described
        if not scene.points or not scene.boxes:
            raise self.error("the scene has no points or no boxes. Name both in its description.")
        return Reader(scene.points[0], scene.boxes[0], self.label, self.least, self.where)

    @property
    def _objects(self) -> ObjectDatabase:
        if self.objects is None:
            raise self.error("it has no objects. engine.augmented reads them; or pass `objects`.")
        return self.objects

    def draw(self, rng: np.random.Generator, example: Example) -> np.ndarray:
        objects = self._objects
        if isinstance(self.count, int):
            return rng.choice(len(objects), min(self.count, len(objects)), replace=False)
        found = [np.zeros(0, np.int64)]
        for label, count in sorted(self.count.items()):
            numbers = objects.by_label[label]
            found.append(numbers[rng.choice(len(numbers), min(count, len(numbers)), replace=False)])
        return np.concatenate(found)

    def apply(self, example: Example, parameters: np.ndarray) -> Example:
        reader, objects = self._reader(), self._objects
        points, boxes = reader.points, reader.boxes
        geometry = box_geometry(example, boxes, self.where)
        valid = mask(example, boxes.valid, self.where, (len(geometry),)) if boxes.valid else None
        existing = geometry if valid is None else geometry[valid]
        chosen = without_collisions(objects.geometry[parameters], existing)
        cloud = _Cloud(example, points, self)
        places = self._places(len(existing), len(geometry), valid)
        inserted: list[int] = []
        for number in parameters[chosen].tolist():
            if len(inserted) < places and cloud.insert(objects.geometry[number], objects.points(number)):
                inserted.append(number)
            elif self.overflow == "error":
                raise self.error(
                    f"object {len(inserted) + 1} has no place: the example has {len(existing)} boxes and {cloud.used} "
                    f"points, allowed are {places} more boxes and {cloud.most} points in all. Raise the limits, lower "
                    "`count`, or set overflow='count'."
                )
        changes = cloud.changes() if inserted else {}
        changes |= self._rows(example, reader, np.array(inserted, np.int64), len(geometry), valid)
        if self.counts:
            numbers = (len(inserted), len(parameters) - len(chosen), len(chosen) - len(inserted))
            changes[self.counts] = np.array(numbers, np.int32)
        return replaced(example, changes)

    def _places(self, used: int, total: int, valid: np.ndarray | None) -> float:
        """Returns the number of boxes that may be inserted."""
        most = np.inf if self.most_boxes is None else self.most_boxes
        return max(0, min(most, np.inf if valid is None else total) - used)

    def _rows(
        self, example: Example, reader: Reader, inserted: np.ndarray, count: int, valid: np.ndarray | None
    ) -> dict[str, Any]:
        """Returns the entries with one row for each box, with those of the inserted objects, by path."""
        if not len(inserted):
            return {}
        boxes, changes = reader.boxes, {}
        free = None if valid is None else np.flatnonzero(~valid)[: len(inserted)]
        for path in reader.paths:
            old, new = reader.row(example, path, count), self._objects.rows(path, inserted)
            if new.dtype.kind != "U":
                new = new.astype(old.dtype)
            if free is None:
                changes[path] = np.concatenate([old, new.astype(object) if old.dtype.kind == "O" else new])
            else:
                # Text has a fixed length in numpy: the longest of both, or labels would be cut off.
                changes[path] = old.astype(
                    np.promote_types(old.dtype, new.dtype) if old.dtype.kind == "U" else old.dtype
                )
                changes[path][free] = new
        if free is not None:
            assert valid is not None
            changes[boxes.valid] = valid.copy()
            changes[boxes.valid][free] = True
        return changes


def without_collisions(drawn: np.ndarray, existing: np.ndarray) -> np.ndarray:
    """Returns the numbers of drawn boxes `[n, 7]` that overlap neither with existing ones nor with earlier ones.

    A box that collides is not inserted, so later boxes may take its place.
    """
    free = ~overlaps(drawn, existing).any(axis=1)
    between, chosen = overlaps(drawn, drawn), []
    for number in np.flatnonzero(free).tolist():
        if not between[number, chosen].any():
            chosen.append(number)
    return np.array(chosen, np.int64)


class _Cloud:
    """The points of an example, from which some are removed and to which those of objects are added."""

    def __init__(self, example: Example, points: Points, step: SampleObjects):
        self._points, self._where, self._example = points, step.where, example
        self._old = array(example, points.entry, step.where, "[points, 3 or more]", (-3,), least=2)
        self._valid = mask(example, points.valid, step.where, self._old.shape[:-1]) if points.valid else None
        self._keep = np.ones(len(self._old), bool) if self._valid is None else self._valid.copy()
        self._pose = entry(example, points.to_ego, step.where).astype(np.float64) if points.to_ego else None
        self._ego = self._old if self._pose is None else placed(self._old, self._pose)
        self._margin, self._added = step.margin, list[np.ndarray]()
        most = np.inf if step.most_points is None else step.most_points
        self.most = most if self._valid is None else min(most, len(self._old))
        self.used = int(np.count_nonzero(self._keep))
        """Number of points that the example has now."""

    def insert(self, box: np.ndarray, own: np.ndarray) -> bool:
        """Removes the points within a box `[7]` and adds its own; returns False if there is no place for them."""
        keep = self._keep & ~inside(self._ego, box, self._margin)
        added = sum(map(len, self._added)) + len(own)
        if np.count_nonzero(keep) + added > self.most:
            return False
        self._keep = keep
        self._added.append(own)
        self.used = int(np.count_nonzero(keep)) + added
        return True

    def changes(self) -> dict[str, Any]:
        """Returns the entries of the points with those of objects added, by path."""
        added = [found if self._pose is None else placed(found, np.linalg.inv(self._pose)) for found in self._added]
        new = np.concatenate([self._old[self._keep], *(found.astype(self._old.dtype) for found in added)])
        if self._valid is None:
            return {self._points.entry: new}
        found, valid = np.zeros_like(self._old), np.arange(len(self._old)) < len(new)
        found[: len(new)] = new
        return {self._points.entry: found, self._points.valid: valid}
