"""Reads the sensor dataset of Argoverse 2: lidar sweeps, boxes and poses in Feather files (extra `parquet`).

The layout, the frames and the categories are those of https://github.com/argoverse/av2-api.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example, evenly_spaced
from engine.data.source import SEPARATOR, BaseSource
from engine.readers.arrow import ArrowFormat
from engine.readers.blocks import BlockCache
from engine.readers.extras import import_extra
from engine.readers.files import FINGERPRINT_FILES, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.poses import pose_matrices
from engine.readers.tables import Grouping, Tables
from engine.storage.mounts import local_path, shown

LIDAR = ("x", "y", "z", "intensity", "laser_number", "offset_ns")
POSE = ("tx_m", "ty_m", "tz_m", "qw", "qx", "qy", "qz")
SIZE = ("length_m", "width_m", "height_m")
POSES, BOXES = "city_SE3_egovehicle.feather", "annotations.feather"
CACHE_BYTES = 64 << 20  # poses and boxes of the latest logs: some MB each
CATEGORIES = (
    *("ANIMAL", "ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS", "CONSTRUCTION_BARREL"),
    *("CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN"),
    *("MOTORCYCLE", "MOTORCYCLIST", "OFFICIAL_SIGNALER", "PEDESTRIAN", "RAILED_VEHICLE", "REGULAR_VEHICLE"),
    *("SCHOOL_BUS", "SIGN", "STOP_SIGN", "STROLLER", "TRAFFIC_LIGHT_TRAILER", "TRUCK", "TRUCK_CAB"),
    *("VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER"),
)
"""Names of the categories of boxes."""


class Argoverse2Sensor(BaseSource):
    """Source of the lidar sweeps of Argoverse 2's sensor dataset, log by log in the order of time.

    All geometry is in the *ego frame*: that of the vehicle at the time of the sweep, in which the dataset stores the
    points and the boxes. An example holds:

    - `log`, `timestamp_ns`: as text; `time_s` float32 from the first sweep of the log.
    - `lidar`: x, y, z, intensity from 0 to 255, number of the laser, and seconds since the begin of the sweep, float32
      `[points, 6]`.
    - `ego_to_city`: float64 `[4, 4]`.
    - boxes, if they are read: `box_to_ego` float32 `[boxes, 4, 4]` from the frame of the box, whose origin is its
      center and whose x axis points forward; `box_size` length, width, height, float32 `[boxes, 3]`; `box_category`
      int32 `[boxes]`, the number in `CATEGORIES`, or -1; `box_points` int32 `[boxes]`, the number of lidar points; as
      text `box_name` and `box_track`.
    """

    def __init__(self, folder: str, split: str = "train", logs: Sequence[str] | None = None, boxes: bool = True):
        """Lists the sweeps of a folder.

        Args:
            folder: path or bucket address of the folder with `train`, `val` and `test`.
            split: name of the folder of the logs.
            logs: names of the logs. Default: all.
            boxes: whether to read the boxes. The test split has none: set False.

        Raises:
            DataError: there are no sweeps or no boxes, a log does not exist, a file is damaged, or pyarrow is missing.
        """
        import_extra("pyarrow", "parquet", "Files of Argoverse 2")
        self.folder = os.path.join(local_path(os.path.expanduser(folder)), split)
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        if logs is not None:
            for name in logs:
                if name not in names:
                    raise DataError(f"logs: {folder} has no {split}/{name}.{did_you_mean(name, names)}")
            names = list(logs)
        times = {name: found for name in names if (found := _sweep_times(os.path.join(self.folder, name)))}
        if not times:
            raise DataError(f"{folder}: no {split}/LOG/sensors/lidar/TIMESTAMP.feather. Correct the path or `split`.")
        if boxes and not any(os.path.exists(self._file(name, BOXES)) for name in times):
            raise DataError(f"{folder}: no {split}/LOG/{BOXES}. Set boxes=False to read the sweeps without boxes.")
        self.logs = list(times)
        """Names of the logs that have sweeps."""
        self.known_names = {"log": self.logs}
        self._times = np.array([time for found in times.values() for time in found], np.int64)
        self._log = np.repeat(np.arange(len(times)), [len(found) for found in times.values()])
        self._starts = np.array([found[0] for found in times.values()], np.int64)
        self._sweeps = _tables([self._sweep(index) for index in range(len(self))], LIDAR)
        self._poses = _tables([self._file(log, POSES) for log in self.logs], ("timestamp_ns", *POSE))
        columns = ("timestamp_ns", *POSE, *SIZE, "category", "track_uuid", "num_interior_pts")
        self._boxes = _tables([self._file(log, BOXES) for log in self.logs], columns) if boxes else None
        self._cache = BlockCache(CACHE_BYTES, self._read_log)

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, index: int) -> Example:
        """Returns a sweep. Raises DataError, which names the file that cannot be read."""
        log, time = int(self._log[index]), self._times[index]
        poses, boxes = self._cache.get(log)
        rows = np.flatnonzero(poses["timestamp_ns"] == time)
        if not len(rows):
            raise DataError(f"{shown(self._file(self.logs[log], POSES))}: no pose at {time} ns. Copy the log again.")
        return {
            "log": self.logs[log],
            "timestamp_ns": str(time),
            "time_s": np.float32((time - self._starts[log]) * 1e-9),
            "lidar": _points(self._sweeps[index]),
            "ego_to_city": pose_matrices(_stacked(poses, POSE, rows[0])),
            **({} if boxes is None else _boxes_at(boxes, time)),
        }

    def _read_log(self, log: int) -> tuple[tuple[Example, Example | None], int]:
        """Returns the poses and the boxes of a log, and their size in bytes."""
        found = self._poses[log], None if self._boxes is None else self._boxes[log]
        return found, sum(array.nbytes for table in found if table for array in table.values())

    def fingerprint(self) -> str:
        """Returns the number of sweeps, hashes of their names and of samples of some files, and what is read."""
        names = [f"{self.logs[log]} {time}" for log, time in zip(self._log, self._times, strict=True)]
        files = [self._sweep(index) for index in evenly_spaced(len(self), FINGERPRINT_FILES)]
        files += [] if self._boxes is None else [self._file(log, BOXES) for log in self._some_logs()]
        existing = [path for path in files if os.path.exists(path)]
        samples = [*sampled_files(existing[:FINGERPRINT_FILES]), *sampled_files(existing[FINGERPRINT_FILES:])]
        parts = [f"{len(self)} sweeps", f"names {digest(names)}", f"samples {digest(samples)}"]
        return SEPARATOR.join([*parts, f"boxes {self._boxes is not None}"])

    def _some_logs(self) -> list[str]:
        return [self.logs[n] for n in evenly_spaced(len(self.logs), FINGERPRINT_FILES)]

    def _sweep(self, index: int) -> str:
        return self._file(self.logs[self._log[index]], "sensors", "lidar", f"{self._times[index]}.feather")

    def _file(self, log: str, *names: str) -> str:
        return os.path.join(self.folder, log, *names)


def _sweep_times(log: str) -> list[int]:
    """Returns the times of the lidar sweeps of a log, in nanoseconds."""
    folder = os.path.join(log, "sensors", "lidar")
    names = [os.path.splitext(name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    return sorted(int(name) for name, ending in names if ending == ".feather" and name.isdecimal())


def _tables(paths: Sequence[str], columns: Sequence[str]) -> Tables:
    return Tables(paths, ArrowFormat(0), Grouping(one_per_file=True), columns=columns)


def _points(sweep: Any) -> np.ndarray:
    found = np.empty((len(sweep["x"]), len(LIDAR)), np.float32)
    for number, name in enumerate(LIDAR):
        found[:, number] = sweep[name]
    found[:, LIDAR.index("offset_ns")] *= 1e-9
    return found


def _stacked(table: Any, names: Sequence[str], rows: Any) -> np.ndarray:
    return np.stack([table[name][rows] for name in names], axis=-1)


def _boxes_at(table: Any, time: int) -> dict[str, np.ndarray]:
    rows = np.flatnonzero(table["timestamp_ns"] == time)
    names = table["category"][rows]
    numbers = [CATEGORIES.index(name) if name in CATEGORIES else -1 for name in names]
    return {
        "box_to_ego": pose_matrices(_stacked(table, POSE, rows)).astype(np.float32),
        "box_size": _stacked(table, SIZE, rows).astype(np.float32),
        "box_category": np.array(numbers, np.int32),
        "box_points": table["num_interior_pts"][rows].astype(np.int32),
        "box_name": names if len(rows) else np.empty(0, "U1"),
        "box_track": table["track_uuid"][rows] if len(rows) else np.empty(0, "U1"),
    }
