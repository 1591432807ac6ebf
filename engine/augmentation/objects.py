"""`ObjectDatabase`: the labelled objects of a source, each with the points in its box, for `SampleObjects`.

It is built once, by reading all examples of the source; a file keeps it, with a checksum.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from engine.augmentation.entries import array, described, entry, mask
from engine.augmentation.footprints import box_geometry, inside
from engine.augmentation.padding import padding_source, without_padding
from engine.augmentation.scene import Boxes, Points
from engine.augmentation.shared_table import SharedTable
from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import DataError
from engine.base.files import read_checked, set_aside, write_checked
from engine.base.user_errors import describe
from engine.data.examples import Example
from engine.data.source import BaseSource, source_name
from engine.storage.mounts import local_path

ROW = "row "  # before the path of an entry in the names of arrays


class ObjectDatabase:
    """Objects with the values of their box and their points.

    Args:
        arrays: by name: "points", those of all objects, with x, y, z in the ego frame, `[points, columns]`; "ends" of
            the points of each object, int64 `[objects]`; "geometry", float64 `[objects, 7]`; "labels" as text
            `[objects]`; "row PATH", the values of an entry with one row for each box, `[objects, ...]`.
        key: identifies the source and the settings.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], key: str):
        self.table, self.key = SharedTable(arrays), key
        order = np.argsort(self.table["labels"], kind="stable")
        names, first = np.unique(self.table["labels"][order], return_index=True)
        self.by_label = dict(zip(names.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}
        """Label -> numbers of its objects, int64."""

    def __len__(self) -> int:
        return len(self.table["ends"])

    @property
    def geometry(self) -> np.ndarray:
        """The boxes of the objects, float64 `[objects, 7]`."""
        return self.table["geometry"]

    def points(self, number: int) -> np.ndarray:
        """Returns the points of an object, `[points, columns]`, with x, y, z in the ego frame."""
        ends = self.table["ends"]
        return self.table["points"][ends[number - 1] if number else 0 : ends[number]]

    def rows(self, path: str, numbers: np.ndarray) -> np.ndarray:
        """Returns the values of an entry with one row for each box, for some objects."""
        return self.table[ROW + path][numbers]

    def fingerprint(self) -> str:
        """Returns a hash of all objects."""
        found = xxhash.xxh3_128()
        for name, values in self.table.arrays.items():
            found.update(f"{name} {values.dtype} {values.shape}".encode())
            found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        return found.hexdigest()


class Reader:
    """Reads the objects of examples.

    Args:
        points: description of the points.
        boxes: description of the boxes.
        label: entry with the label of each box; "" if all objects are of one kind.
        least: number of points that an object must have.
        where: begin of the texts of errors.
    """

    def __init__(self, points: Points, boxes: Boxes, label: str, least: int, where: str):
        self.points, self.boxes, self.label, self.least, self.where = points, boxes, label, least, where
        self.paths = boxes.entries if not label or label in boxes.entries else (*boxes.entries, label)

    @property
    def key(self) -> str:
        """Text of the settings."""
        return f"{self.points} {self.boxes} {self.label} {self.least}"

    def read(self, example: Example) -> dict[str, list[np.ndarray]]:
        """Returns the objects of an example: lists of arrays with one row for each object, and the points of each."""
        geometry = box_geometry(example, self.boxes, self.where)
        valid = mask(example, self.boxes.valid, self.where, (len(geometry),)) if self.boxes.valid else None
        points = array(example, self.points.entry, self.where, "[points, 3 or more]", (-3,), least=2)
        if self.points.valid:
            points = points[mask(example, self.points.valid, self.where, points.shape[:-1])]
        if self.points.to_ego:
            pose = array(example, self.points.to_ego, self.where, "[4, 4]", (4, 4))
            points = placed(points, pose)
        labels = self.labels(example, len(geometry))
        found: dict[str, list[np.ndarray]] = {"points": [], "geometry": [], "labels": []}
        found |= {ROW + path: [] for path in self.paths}
        for number, box in enumerate(geometry):
            if (valid is not None and not valid[number]) or not np.isfinite(box).all():
                continue
            own = points[inside(points, box)]
            if len(own) < self.least:
                continue
            found["points"].append(own)
            found["geometry"].append(box)
            found["labels"].append(labels[number])
            for path in self.paths:
                found[ROW + path].append(self.row(example, path, len(geometry))[number])
        return found

    def row(self, example: Example, path: str, count: int) -> np.ndarray:
        """Returns an entry with one row for each box. Raises DataError if it has another number of rows."""
        found = entry(example, path, self.where)
        if not isinstance(found, np.ndarray) or found.shape[:1] != (count,):
            raise DataError(f"{self.where}: {path} is {described(found)}, but the example has {count} boxes.")
        return found

    def labels(self, example: Example, count: int) -> np.ndarray:
        """Returns the label of each box as text `[boxes]`."""
        if not self.label:
            return np.full(count, "object")
        return np.array([str(value) for value in self.row(example, self.label, count).tolist()], dtype=str)


def placed(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Returns points `[points, columns]` with x, y, z in another frame, by a pose `[4, 4]`."""
    found = points.copy()
    wide = points[:, :3].astype(np.float64) @ pose[:3, :3].T.astype(np.float64) + pose[:3, 3]
    found[:, :3] = wide.astype(points.dtype)
    return found


def build_objects(source: BaseSource, reader: Reader, limit: int | None, cache: str | None) -> ObjectDatabase:
    """Returns the objects of the first `limit` examples of a source, from the cache if it holds them.

    Raises:
        DataError: the source is a stream of unknown length, an example cannot be read, no object has enough points, or
            the cache cannot be written.
    """
    if len(source) >= UNKNOWN_LENGTH and limit is None:
        raise DataError(
            f"{reader.where}: {source_name(source)} reads a stream of unknown length, so the objects of all examples "
            "cannot be read. Set `limit`, the number of examples to read."
        )
    key = f"{reader.key} of {limit or 'all'} examples of {source.fingerprint()}"
    path = None if cache is None else Path(local_path(os.path.expanduser(cache)))
    if path is not None and (stored := _load(path, key)) is not None:
        return stored
    arrays = _read(source, reader, limit)
    if path is not None:
        _save(path, key, arrays, reader.where)
    return ObjectDatabase(arrays, key)


def _read(source: BaseSource, reader: Reader, limit: int | None) -> dict[str, np.ndarray]:
    from engine.data.ragged.fields import measured
    from engine.data.source import limited

    padded = padding_source(source)

    def objects(index: int) -> dict[str, list[np.ndarray]]:
        try:
            example = source[index]
            return reader.read(example if padded is None else without_padding(padded, example)[0])
        except Exception as error:
            text = str(error) if isinstance(error, DataError) else describe(error)
            raise DataError(f"{reader.where}: example {index} of {source_name(source)}: {text}") from error

    advice = "With cache=, a file that keeps the objects, later starts need not."
    found = measured(limited(source, limit), objects, "reading the objects of", advice)
    if not any(one["geometry"] for one in found):
        raise DataError(
            f"{reader.where}: no box of {source_name(source)} has {reader.least} points or more in it. Correct the "
            "description of points and boxes, or lower `least`."
        )
    points = [own for one in found for own in one["points"]]
    arrays: dict[str, Any] = {"points": np.concatenate(points), "ends": np.cumsum([len(own) for own in points])}
    for name in found[0]:
        if name != "points":
            values = [value for one in found for value in one[name]]
            stacked = np.stack([np.asarray(value) for value in values])
            arrays[name] = stacked.astype(str) if stacked.dtype.kind == "O" else stacked
    return arrays


def _load(path: Path, key: str) -> ObjectDatabase | None:
    """Returns the objects in a cache file; None if there is no such file, or it was written for something else."""
    try:
        content = read_checked(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        set_aside(path, "database of objects, which is built again", error)
        return None
    with np.load(io.BytesIO(content)) as stored:
        if str(stored["key"]) != key:
            return None
        return ObjectDatabase({name: stored[name] for name in stored.files if name != "key"}, key)


def _save(path: Path, key: str, arrays: Mapping[str, np.ndarray], where: str) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, key=np.array(key), **arrays)
    try:
        write_checked(path, content.getbuffer())
    except OSError as error:
        raise DataError(f"{where}: the cache {path} cannot be written: {error}. Choose another path.") from error
