"""Reads the layout of nuScenes: JSON tables, lidar, radar and camera images (extra `images`, if images are read).

The tables are read once, and kept as arrays of what the samples need. Points and images are read with the example.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example, evenly_spaced
from engine.data.source import SEPARATOR, BaseSource
from engine.readers.decode_image import DecodeImage
from engine.readers.files import FINGERPRINT_FILES, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.lidar_files import read_points
from engine.readers.nuscenes_labels import DetectionLabels
from engine.readers.nuscenes_sweeps import COLUMNS, Row, Sweeps, pose_of
from engine.readers.poses import pose_matrices
from engine.readers.radar_files import read_radar
from engine.storage.mounts import local_path, shown

TABLES = ("calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation", "sample_data")
TABLES += ("scene", "sensor")
BY_TOKEN = ("calibrated_sensor", "ego_pose", "instance", "sample", "scene")  # tables whose rows others name
NO_POSE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


class _Frames:
    """The data of one sensor at each sample. A pose is a translation and a quaternion w, x, y, z."""

    def __init__(self, count: int):
        self.files = [""] * count
        self.sizes = np.ones((count, 2))  # height, width
        self.intrinsics = np.zeros((count, 3, 3))
        self.sensor_to_ego, self.ego_to_world = np.tile(NO_POSE, (2, count, 1))


class NuScenes(BaseSource):
    """Source of the samples of nuScenes, the annotated moments at 2 Hz, in the order of the scenes.

    All geometry is in the *ego frame*: that of the vehicle at the time of the first of `sensors`. An example holds:

    - `sample`, `scene`: token and name, as text; `time_s` float32 from the first sample of the scene.
    - `LIDAR_TOP`: x, y, z in the frame of the sensor, intensity, ring, float32 `[points, 5]`. With `sweeps`, the points
      of earlier sweeps follow, moved into the same frame, and a column has their age in seconds, float32 `[points, 6]`.
    - for each radar, such as `RADAR_FRONT`: the valid points in the frame of the sensor, float32 `[points, 18]`, by
      `engine.readers.radar_files.FIELDS`: x, y, z, ..., with velocities in columns 6 to 9.
    - for each camera, such as `CAM_FRONT`: uint8 `[height, width, 3]`.
    - `calibration`: for each sensor, `to_ego` float32 `[4, 4]`, and of a camera `intrinsics` float32 `[3, 3]`.
    - `ego_to_world`: float64 `[4, 4]`.
    - boxes: `box_to_ego` float32 `[boxes, 4, 4]` from the frame of the box, whose origin is its center and whose x axis
      points forward; `box_size` width, length, height, float32 `[boxes, 3]`; `box_category` int32 `[boxes]`, the number
      in `categories`; `box_points` int32 `[boxes]`, the number of lidar points; as text `box_name` and `box_instance`.
    - with `detection`, what the detection task evaluates in addition: `box_velocity` float32 `[boxes, 3]`, metres per
      second along the axes of the ego frame, NaN where it is unknown; `box_attribute` int32 `[boxes]`, the number in
      `attributes`, -1 for none; `box_radar_points` int32 `[boxes]`.
    """

    def __init__(
        self,
        folder: str,
        version: str = "v1.0-trainval",
        sensors: Sequence[str] = ("LIDAR_TOP",),
        scenes: Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        sweeps: int = 0,
        detection: bool = False,
        crop: Sequence[int] | None = None,
        sweep_cache: int = 0,
    ):
        """Reads the tables of a version, all of them at once; memory then keeps what the samples need.

        Args:
            folder: path or bucket address of the folder that holds the folder `version`, `samples` and so on.
            version: name of the folder of the tables.
            sensors: lidar, radars and cameras to read. The first one defines the ego frame.
            scenes: names of the scenes, such as those of a split. Default: all.
            size: (height, width) to which images are resized; `intrinsics` are scaled with them.
            sweeps: number of lidar sweeps before each sample to add. They come at 20 Hz, and samples at 2 Hz. The first
                samples of a scene have fewer.
            detection: whether boxes have velocities, attributes and numbers of radar points.
            crop: (top, left, height, width) of the part of the resized images to read; `intrinsics` are moved with it.
                Most models of cameras leave out the sky, such as size=(396, 704) and crop=(140, 0, 256, 704).
            sweep_cache: bytes of decoded sweeps that each process keeps, such as 32 MiB for 45 sweeps. It saves reads
                where examples that follow each other share sweeps. By default none, since in nuScenes itself ten sweeps
                lie between two samples, so that samples share none.

        Raises:
            DataError: a table is missing or damaged, a sensor or scene does not exist, or a library is missing.
        """
        self.folder, self._version = str(local_path(os.path.expanduser(folder))), version
        self.sensors, self._size = tuple(sensors), None if size is None else tuple(size)
        if not sensors:
            raise DataError("sensors is empty. Name at least one, such as LIDAR_TOP.")
        if sweeps < 0:
            raise DataError(f"sweeps = {sweeps}: allowed are 0 and more.")
        if sweep_cache < 0:
            raise DataError(f"sweep_cache = {sweep_cache}: allowed are 0 and more bytes.")
        self._count, self._sweep_cache = sweeps, sweep_cache
        self._crop = None if crop is None else tuple(crop)
        self._tables = (*TABLES, "attribute") if detection else TABLES
        tables = {name: _table(os.path.join(self.folder, version, f"{name}.json")) for name in self._tables}
        try:
            self._index(tables, scenes)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder}: the tables of {version} do not fit each other: {type(error).__name__}: {error}. Copy them "
                "again."
            ) from error
        self._decode = DecodeImage(size, "stretch", crop=crop) if any(map(_is_camera, sensors)) else None

    def _index(self, tables: dict[str, list[Row]], scenes: Sequence[str] | None) -> None:
        by_token = {name: {row["token"]: row for row in tables[name]} for name in BY_TOKEN}
        channels = {row["token"]: row["channel"] for row in tables["sensor"]}
        for sensor in self.sensors:
            known = sorted(set(channels.values()))
            if sensor not in known:
                raise DataError(f"sensor {sensor}: allowed are {', '.join(known)}.{did_you_mean(sensor, known)}")
        samples = _ordered_samples(by_token, tables["scene"], scenes)
        self.tokens = [row["token"] for row in samples]
        """Tokens of the samples."""
        self._scenes = [by_token["scene"][row["scene_token"]] for row in samples]
        firsts = [by_token["sample"][scene["first_sample_token"]]["timestamp"] for scene in self._scenes]
        self._times = np.array([row["timestamp"] - first for row, first in zip(samples, firsts, strict=True)]) * 1e-6
        self._scenes = [scene["name"] for scene in self._scenes]
        self.known_names = {"sample": self.tokens, "scene": self._scenes}
        numbers = {token: number for number, token in enumerate(self.tokens)}
        self._frames = {sensor: _Frames(len(samples)) for sensor in self.sensors}
        keys: dict[str, list[Row | None]] = {sensor: [None] * len(samples) for sensor in self.sensors}
        for row in tables["sample_data"]:
            calibration = by_token["calibrated_sensor"][row["calibrated_sensor_token"]]
            sensor, number = channels[calibration["sensor_token"]], numbers.get(row["sample_token"])
            if row["is_key_frame"] and number is not None and sensor in self._frames:
                pose, frames = by_token["ego_pose"][row["ego_pose_token"]], self._frames[sensor]
                frames.files[number], keys[sensor][number] = row["filename"], row
                frames.sensor_to_ego[number], frames.ego_to_world[number] = pose_of(calibration), pose_of(pose)
                if _is_camera(sensor):
                    frames.sizes[number] = row["height"], row["width"]
                    frames.intrinsics[number] = calibration["camera_intrinsic"]
        lidars = [sensor for sensor in self.sensors if _is_lidar(sensor) and self._count]
        if lidars:
            by_token["sample_data"] = {row["token"]: row for row in tables["sample_data"]}
        self._sweeps = {sensor: Sweeps(keys[sensor], by_token, self._count, self._sweep_cache) for sensor in lidars}
        self._index_boxes(tables, by_token, numbers)

    def _index_boxes(
        self, tables: dict[str, list[Row]], by_token: dict[str, dict[str, Row]], numbers: dict[str, int]
    ) -> None:
        self.categories = [row["name"] for row in tables["category"]]
        """Names of the categories of boxes."""
        category = {row["token"]: number for number, row in enumerate(tables["category"])}
        rows = [row for row in tables["sample_annotation"] if row["sample_token"] in numbers]
        rows.sort(key=lambda row: numbers[row["sample_token"]])  # keeps the order of the table within a sample
        of = np.array([numbers[row["sample_token"]] for row in rows], np.int64)
        self._box_begins = np.searchsorted(of, np.arange(len(self.tokens) + 1))
        self._box_poses = np.array([pose_of(row) for row in rows], np.float64).reshape(-1, 7)
        self._box_sizes = np.array([row["size"] for row in rows], np.float32).reshape(-1, 3)
        self._box_points = np.array([row["num_lidar_pts"] for row in rows], np.int32)
        self._box_instances = [row["instance_token"] for row in rows]
        instances = by_token["instance"]
        found = [category[instances[token]["category_token"]] for token in self._box_instances]
        self._box_categories = np.array(found, np.int32)
        self.attributes = [row["name"] for row in tables.get("attribute", ())]
        """Names of the attributes of boxes; none without `detection`."""
        self._box_labels = DetectionLabels(rows, tables, by_token["sample"]) if "attribute" in tables else None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Example:
        """Returns a sample. Raises DataError, which names the file that cannot be read."""
        ego_to_world = pose_matrices(self._frames[self.sensors[0]].ego_to_world[index])
        world_to_ego = np.linalg.inv(ego_to_world)
        example = {
            "sample": self.tokens[index],
            "scene": self._scenes[index],
            "time_s": np.float32(self._times[index]),
            "ego_to_world": ego_to_world,
            "calibration": {},
            **self._boxes(slice(*self._box_begins[index : index + 2]), world_to_ego),
        }
        for sensor, frames in self._frames.items():
            if not frames.files[index]:
                raise DataError(f"{shown(self.folder)}: sample {self.tokens[index]} has no data of {sensor}.")
            own_to_world, to_own = pose_matrices(frames.ego_to_world[index]), pose_matrices(frames.sensor_to_ego[index])
            example["calibration"][sensor] = {"to_ego": (world_to_ego @ own_to_world @ to_own).astype(np.float32)}
            path = os.path.join(self.folder, frames.files[index])
            if not _is_camera(sensor):
                if sensor in self._sweeps:
                    sweeps, to_world = self._sweeps[sensor], own_to_world @ to_own
                    example[sensor] = sweeps.added(sweeps.read(path), index, self.folder, to_world)
                else:
                    example[sensor] = read_points(path, COLUMNS) if _is_lidar(sensor) else read_radar(path)
                continue
            example[sensor] = self._image(path)
            whole = example[sensor].shape[:2] if self._crop is None else self._size or frames.sizes[index]
            height, width = np.array(whole) / frames.sizes[index]
            intrinsics = frames.intrinsics[index] * np.array([[width], [height], [1]])
            if self._crop is not None:
                intrinsics[:2, 2] -= self._crop[1], self._crop[0]
            example["calibration"][sensor]["intrinsics"] = intrinsics.astype(np.float32)
        return example

    def _image(self, path: str) -> np.ndarray:
        assert self._decode is not None
        try:
            return self._decode(Path(path).read_bytes())
        except (OSError, DataError) as error:
            raise DataError(f"{shown(path)}: {error}. Copy the file again.") from error

    def _boxes(self, rows: slice, world_to_ego: np.ndarray) -> dict[str, Any]:
        categories, instances = self._box_categories[rows], self._box_instances[rows]
        labels = {} if self._box_labels is None else self._box_labels.of(rows, world_to_ego)
        names = [self.categories[number] for number in categories]
        return {
            "box_to_ego": (world_to_ego @ pose_matrices(self._box_poses[rows])).astype(np.float32),
            "box_size": self._box_sizes[rows].copy(),
            "box_category": categories.copy(),
            "box_points": self._box_points[rows].copy(),
            "box_name": np.array(names, object) if names else np.empty(0, "U1"),
            "box_instance": np.array(instances, object) if instances else np.empty(0, "U1"),
            **labels,
        }

    def fingerprint(self) -> str:
        """Returns the number of samples, and hashes of the tokens, the tables and sampled bytes."""
        tables = [os.path.join(self.folder, self._version, f"{name}.json") for name in self._tables]
        names = self._frames[self.sensors[0]].files
        files = [os.path.join(self.folder, names[i]) for i in evenly_spaced(len(self), FINGERPRINT_FILES) if names[i]]
        existing = [path for path in files if os.path.exists(path)]
        parts = [f"{len(self)} samples of {self._version}", f"tokens {digest(self.tokens)}"]
        parts += [f"tables {digest(sampled_files(tables))}", f"files {digest(sampled_files(existing))}"]
        parts += [f"sensors {', '.join(self.sensors)}", f"size {self._size}"]
        parts += [f"crop {self._crop}"] if self._crop is not None else []
        parts += [f"{self._count} sweeps"] if self._count else []
        return SEPARATOR.join([*parts, "detection labels"] if self._box_labels else parts)


def _is_camera(sensor: str) -> bool:
    return sensor.startswith("CAM")


def _is_lidar(sensor: str) -> bool:
    return sensor.startswith("LIDAR")


def _table(path: str) -> list[Row]:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{shown(path)}: no table of nuScenes: {error}. Correct the folder or the version, or copy it again."
        ) from error


def _ordered_samples(by_token: dict[str, dict[str, Row]], scenes: list[Row], chosen: Sequence[str] | None) -> list[Row]:
    """Returns the samples of the chosen scenes, in their order, by time."""
    known = [scene["name"] for scene in scenes]
    for name in chosen or []:
        if name not in known:
            raise DataError(f"scenes: no scene {name}.{did_you_mean(name, known)}")
    found = []
    for scene in scenes if chosen is None else [scenes[known.index(name)] for name in chosen]:
        token = scene["first_sample_token"]
        while token:
            found.append(by_token["sample"][token])
            token = found[-1]["next"]
    if not found:
        raise DataError("scenes: no samples. Name at least one scene.")
    return found
