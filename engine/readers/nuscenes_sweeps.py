"""Moves the lidar sweeps before a key frame of nuScenes into the coordinates of the key frame.

The formula is that of `PointCloud.from_file_multisweep` in python-sdk/nuscenes/utils/data_classes.py of
https://github.com/nutonomy/nuscenes-devkit: from the sensor over the ego frame to the world at the time of the sweep,
and back at the time of the key frame. That function also drops points within 1 m of the sensor; they are kept here.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.readers.blocks import BlockCache
from engine.readers.lidar_files import read_points
from engine.readers.poses import pose_matrices

type Row = dict[str, Any]

COLUMNS = 5  # x, y, z, intensity, ring


def pose_of(row: Row) -> list[float]:
    """Returns the translation and the quaternion of a row of a table."""
    return [*row["translation"], *row["rotation"]]


class Sweeps:
    """The sweeps of one lidar before each sample.

    Args:
        keys: row of `sample_data` of the key frame of each sample; None for a sample without one.
        tables: rows by token of `sample_data`, `calibrated_sensor` and `ego_pose`.
        count: sweeps before a key frame; the first samples of a scene have fewer.
        cache_bytes: bound of the decoded sweeps that each process keeps for samples that share them; 0 keeps the last.

    Raises:
        KeyError: the tables do not fit each other.
    """

    def __init__(
        self,
        keys: Sequence[Row | None],
        tables: Mapping[str, Mapping[str, Row]],
        count: int,
        cache_bytes: int = 0,
    ):
        numbers: dict[str, int] = {}
        self._of: list[list[int]] = []  # numbers of the sweeps of each sample, the latest first
        for key in keys:
            row, found = key, []
            while row is not None and row["prev"] and len(found) < count:
                row = tables["sample_data"][row["prev"]]
                found.append(numbers.setdefault(row["token"], len(numbers)))
            self._of.append(found)
        rows = [tables["sample_data"][token] for token in numbers]
        self._times = np.array([row["timestamp"] for row in rows], np.int64)
        self._key_times = np.array([0 if key is None else key["timestamp"] for key in keys], np.int64)
        sensors = [pose_of(tables["calibrated_sensor"][row["calibrated_sensor_token"]]) for row in rows]
        egos = [pose_of(tables["ego_pose"][row["ego_pose_token"]]) for row in rows]
        self._to_ego, self._to_world = (np.array(poses, np.float64).reshape(-1, 7) for poses in (sensors, egos))
        self._files = [row["filename"] for row in rows]
        self._cache = BlockCache(cache_bytes, _read)

    def read(self, path: str) -> np.ndarray:
        """Returns the points of a file, float32 `[points, 5]`, read-only. Raises DataError for a damaged one."""
        return self._cache.get(path)

    def added(self, points: np.ndarray, index: int, folder: str, sensor_to_world: np.ndarray) -> np.ndarray:
        """Returns the points of a key frame and of the sweeps before it, float32 `[points, 6]`.

        The last column is the seconds from the sweep to the key frame.

        Args:
            points: those of the key frame, float32 `[points, 5]`.
            index: number of the sample.
            folder: folder of the dataset.
            sensor_to_world: pose of the sensor at the time of the key frame, `[4, 4]`.

        Raises:
            DataError: the file of a sweep is missing or cut off.
        """
        world_to_sensor = np.linalg.inv(sensor_to_world)
        parts = [self.read(os.path.join(folder, self._files[number])) for number in self._of[index]]
        found = np.empty((len(points) + sum(map(len, parts)), COLUMNS + 1), np.float32)
        found[: len(points), :COLUMNS], found[: len(points), COLUMNS] = points, 0
        start = len(points)
        for number, part in zip(self._of[index], parts, strict=True):
            moved = world_to_sensor @ pose_matrices(self._to_world[number]) @ pose_matrices(self._to_ego[number])
            rows = found[start : start + len(part)]
            xyz = moved[:3, :3] @ part[:, :3].T + moved[:3, 3:]
            for axis in range(3):  # column by column takes half of the time of all at once
                rows[:, axis] = xyz[axis]
            rows[:, 3:COLUMNS] = part[:, 3:]
            rows[:, COLUMNS] = (self._key_times[index] - self._times[number]) * 1e-6
            start += len(part)
        return found


def _read(path: str) -> tuple[np.ndarray, int]:
    points = np.asfortranarray(read_points(path, COLUMNS))  # column by column, as they are moved
    points.flags.writeable = False  # samples share it
    return points, points.nbytes
