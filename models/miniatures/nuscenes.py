"""Writes simulated drives in the layout of nuScenes v1.0: all tables, lidar sweeps, six cameras, and masks of maps.

python -m convoy_zoo.models.miniatures.nuscenes FOLDER

Scenes have names of the splits `mini_train` and `mini_val`, so that the nuscenes-devkit evaluates them. Smaller than in
nuScenes: a quarter of the points, images of 128x48 pixels at the samples only, two lidar sweeps between samples instead
of nine, and a map of 120 m for each scene. There are no radars. The number of points of an annotation is that of the
points within 0.1 m of its box and above the ground.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..street.camera_scenes import ROADSIDE, render
from ..street.cameras import CAMERAS, COLUMNS, ROWS, Rig
from ..street.scenes import HEIGHT, directions, measure, rotation
from .ten_classes import PERIOD, World, attribute

VERSION = "v1.0-mini"
SPLITS = {
    "mini_train": ("0061", "0553", "0655", "0757", "0796", "1077", "1094", "1100"),
    "mini_val": ("0103", "0916"),
}
"""Numbers of the scenes of each split of the devkit."""
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
ATTRIBUTES = ("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider")
ATTRIBUTES += ("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving")
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
LIDAR = "LIDAR_TOP"
TO_EGO = [0.0, 0.0, HEIGHT, np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)]  # of the lidar, whose y axis points ahead
START = 1_532_402_927_000_000  # microseconds
KEPT = 4  # of so many rays, one is measured
FARTHEST = 55.0  # metres from the vehicle of an annotated object
MAP_M, PIXEL_M = 120.0, 0.1  # size of a map and of its pixels


def write(
    folder: str | Path, scenes: tuple[int, int] = (4, 2), samples: int = 10, sweeps: int = 2, seed: int = 0
) -> None:
    """Writes a miniature. The same arguments give the same bytes.

    Args:
        folder: made if it is absent.
        scenes: number of scenes of `mini_train`, at most 8, and of `mini_val`, at most 2.
        samples: annotated moments of a scene, 0.5 s apart.
        sweeps: lidar sweeps between two samples.
        seed: changes all scenes.
    """
    writer = _Writer(Path(folder), sweeps, seed)
    names = [name for split, count in zip(SPLITS.values(), scenes, strict=True) for name in split[:count]]
    for name in names:
        writer.add_scene(name, samples)
    place = Path(folder) / VERSION
    place.mkdir(parents=True, exist_ok=True)
    for table, rows in writer.tables.items():
        (place / f"{table}.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")


def _token(*parts: object) -> str:
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


def _pose(place: np.ndarray, quaternion: Any) -> dict[str, list[float]]:
    return {"translation": np.asarray(place).tolist(), "rotation": np.asarray(quaternion).tolist()}


def _about_z(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def _quaternion(turn: np.ndarray) -> np.ndarray:
    """Returns the quaternion w, x, y, z of a rotation `[3, 3]`: an eigenvector (Bar-Itzhack 2000, 10.2514/2.4654)."""
    (a, b, c), (d, e, f), (g, h, i) = turn
    rows = [a + e + i, h - f, c - g, d - b], [h - f, a - e - i, b + d, c + g]
    rows += [c - g, b + d, e - a - i, f + h], [d - b, c + g, f + h, i - a - e]
    return np.linalg.eigh(np.array(rows))[1][:, -1]


class _Writer:
    """Collects the rows of all tables, and writes the other files at once."""

    def __init__(self, folder: Path, sweeps: int, seed: int):
        self._folder, self._sweeps, self._seed = folder, sweeps, seed
        kinds = [(LIDAR, "lidar"), *((_channel(name), "camera") for name in CAMERAS)]
        self.tables: dict[str, list[dict[str, Any]]] = {
            "attribute": [{"token": _token(name), "name": name, "description": ""} for name in ATTRIBUTES],
            "category": [{"token": _token(name), "name": name, "description": ""} for name in CATEGORIES.values()],
            "sensor": [{"token": _token(name), "channel": name, "modality": kind} for name, kind in kinds],
            "visibility": [
                {"token": str(n + 1), "level": level, "description": ""} for n, level in enumerate(VISIBILITY)
            ],
        }
        others = ("calibrated_sensor", "ego_pose", "instance", "log", "map", "sample", "sample_annotation")
        self.tables |= {name: [] for name in (*others, "sample_data", "scene")}

    def add_scene(self, number: str, samples: int) -> None:
        """Writes a scene of a split, with a log and a map of its own."""
        rng = np.random.default_rng([self._seed, int(number)])
        world, rig = World.draw(rng, samples), Rig.mounted(rng)
        start = np.array([*rng.uniform(0.4 * MAP_M, 0.6 * MAP_M, 2), rng.uniform(0, 2)])
        scene = _Scene(f"scene-{number}", world, rig, start, rng.uniform(-np.pi, np.pi), START + 10**9 * int(number))
        self._add_log(scene)
        self._add_calibration(scene)
        tokens = [_token(self._seed, scene.name, "sample", n) for n in range(samples)]
        row = {"token": scene.token, "log_token": scene.log, "nbr_samples": samples, "name": scene.name}
        row |= {"first_sample_token": tokens[0], "last_sample_token": tokens[-1], "description": "Simulated street"}
        self.tables["scene"].append(row)
        for n, token in enumerate(tokens):
            row = {"token": token, "timestamp": scene.micros(PERIOD * n), "scene_token": scene.token}
            self.tables["sample"].append(row | _links(tokens, n))
        seen = self._add_lidar(rng, scene, tokens)
        self._add_images(rng, scene, tokens)
        self._add_annotations(scene, tokens, seen)

    def _add_log(self, scene: "_Scene") -> None:
        row = {"token": scene.log, "logfile": scene.name, "vehicle": "simulated", "date_captured": "2018-07-24"}
        self.tables["log"].append(row | {"location": "miniature"})
        token = _token(scene.name, "map")
        row = {"token": token, "log_tokens": [scene.log], "category": "semantic_prior"}
        self.tables["map"].append(row | {"filename": f"maps/{token}.png"})
        place = (np.arange(round(MAP_M / PIXEL_M)) + 0.5) * PIXEL_M  # the first row is the northernmost
        south = np.cos(scene.yaw) * (MAP_M - place - scene.start[1])
        across = south[:, None] - np.sin(scene.yaw) * (place - scene.start[0])  # to the left of the vehicle
        road = 255 * ((across > ROADSIDE[0]) & (across < ROADSIDE[1]))
        self._image(f"maps/{token}.png", road.astype(np.uint8))

    def _add_calibration(self, scene: "_Scene") -> None:
        mounts: dict[str, tuple[Any, Any, list[Any]]] = {LIDAR: (TO_EGO[:3], TO_EGO[3:], [])}
        for name, pose, matrix in zip(CAMERAS, scene.rig.poses, scene.rig.intrinsics, strict=True):
            mounts[_channel(name)] = pose[:3, 3], _quaternion(pose[:3, :3]), matrix.tolist()
        for channel, (place, turn, matrix) in mounts.items():
            row = {"token": _token(scene.name, channel), "sensor_token": _token(channel), **_pose(place, turn)}
            self.tables["calibrated_sensor"].append(row | {"camera_intrinsic": matrix})

    def _add_lidar(self, rng: np.random.Generator, scene: "_Scene", tokens: list[str]) -> list[tuple[Any, ...]]:
        """Writes the sweeps of a scene; returns the boxes, points on each and share that is seen at each sample."""
        step, seen, rows = self._sweeps + 1, [], []
        for n in range(step * (len(tokens) - 1) + 1):
            seconds, key = PERIOD * n / step, n % step == 0
            boxes = scene.world.boxes(seconds)
            points, hits, alone = measure(rng, scene.world.scene, boxes, scene.world.slope)
            points = points[rng.random(len(points)) < 1 / KEPT]
            sample = tokens[-(-n // step)]
            rows.append(self._data_row(scene, LIDAR, sample, seconds, key, "pcd.bin", (0, 0)))
            _path(self._folder, rows[-1]["filename"]).write_bytes(_lidar_frame(points).tobytes())
            if key:
                seen.append((boxes, _points_in(boxes, points), hits / np.maximum(alone, 1)))
        self._append_linked(rows)
        return seen

    def _add_images(self, rng: np.random.Generator, scene: "_Scene", tokens: list[str]) -> None:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CAMERAS}
        look = rng.integers(2**32)  # the colours of a scene do not change
        for n, sample in enumerate(tokens):
            seconds = PERIOD * n
            drawn = (scene.world.boxes(seconds), scene.world.labels, scene.world.street(seconds), scene.rig)
            images = render(np.random.default_rng(look), *drawn)[0]
            for name, image in zip(CAMERAS, images, strict=True):
                row = self._data_row(scene, _channel(name), sample, seconds, True, "jpg", (ROWS, COLUMNS))
                self._image(row["filename"], image)
                rows[name].append(row)
        for found in rows.values():
            self._append_linked(found)

    def _data_row(
        self, scene: "_Scene", channel: str, sample: str, seconds: float, key: bool, ending: str, size: tuple[int, int]
    ) -> dict[str, Any]:
        """Returns a row of `sample_data`; adds the pose of the vehicle."""
        time = scene.micros(seconds)
        token = _token(self._seed, scene.name, channel, time)
        place = scene.to_world(scene.world.travelled(seconds))
        self.tables["ego_pose"].append({"token": token, "timestamp": time, **_pose(place, _about_z(scene.yaw))})
        folder = "samples" if key else "sweeps"
        row = {"token": token, "sample_token": sample, "ego_pose_token": token, "timestamp": time}
        row |= {"calibrated_sensor_token": _token(scene.name, channel), "is_key_frame": key}
        row |= {"fileformat": ending.partition(".")[0], "height": size[0], "width": size[1]}
        return row | {"filename": f"{folder}/{channel}/{scene.name}__{channel}__{time}.{ending}"}

    def _append_linked(self, rows: list[dict[str, Any]]) -> None:
        tokens = [row["token"] for row in rows]
        self.tables["sample_data"] += [row | _links(tokens, n) for n, row in enumerate(rows)]

    def _add_annotations(self, scene: "_Scene", tokens: list[str], seen: list[tuple[Any, ...]]) -> None:
        world, attributes = scene.world, self.tables["attribute"]
        by_name = {row["name"]: row["token"] for row in attributes}
        for index, (name, speed, label) in enumerate(zip(world.names, world.speeds, world.labels, strict=True)):
            near = [n for n, found in enumerate(seen) if np.hypot(*found[0][index, :2]) < FARTHEST]
            if not name or not near:
                continue
            near = list(range(near[0], near[-1] + 1))  # without gaps
            instance = _token(self._seed, scene.name, "instance", index)
            mine = [_token(instance, n) for n in near]
            row = {"token": instance, "category_token": _token(CATEGORIES[name]), "nbr_annotations": len(mine)}
            row |= {"first_annotation_token": mine[0], "last_annotation_token": mine[-1]}
            self.tables["instance"].append(row)
            kind = attribute(name, speed, label)
            for place, n in enumerate(near):
                boxes, points, share = seen[n]
                x, y, z, length, width, height, yaw = boxes[index].tolist()
                centre = scene.to_world(world.travelled(PERIOD * n) + np.array([x, y, z + height / 2]))
                row = {"token": mine[place], "sample_token": tokens[n], "instance_token": instance}
                row |= {"visibility_token": str(1 + int(np.digitize(share[index], [0.4, 0.6, 0.8])))}
                row |= {"attribute_tokens": [by_name[kind]] if kind else [], "size": [width, length, height]}
                row |= _pose(centre, _about_z(yaw + scene.yaw)) | _links(mine, place)
                self.tables["sample_annotation"].append(row | {"num_lidar_pts": int(points[index]), "num_radar_pts": 0})

    def _image(self, name: str, values: np.ndarray) -> None:
        Image.fromarray(values).save(_path(self._folder, name), quality=92)


class _Scene:
    """What the rows of a scene need: its names, its world, its cameras, and where and when it starts."""

    def __init__(self, name: str, world: World, rig: Rig, start: np.ndarray, yaw: float, micros: int):
        self.name, self.world, self.rig, self.start, self.yaw, self._micros = name, world, rig, start, yaw, micros
        self.token, self.log = _token(name), _token(name, "log")

    def micros(self, seconds: float) -> int:
        return self._micros + round(1e6 * seconds)

    def to_world(self, point: np.ndarray) -> np.ndarray:
        """Returns a point of the frame of the vehicle at the start in the global frame."""
        return np.append(rotation(self.yaw) @ point[:2], point[2]) + self.start


def _channel(camera: str) -> str:
    return f"CAM_{camera.upper()}"


def _links(tokens: list[str], n: int) -> dict[str, str]:
    return {"prev": tokens[n - 1] if n else "", "next": tokens[n + 1] if n + 1 < len(tokens) else ""}


def _path(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lidar_frame(points: np.ndarray) -> np.ndarray:
    """Returns points in the frame of the lidar, with intensity to 255 and ring, `[points, 5]`."""
    x, y, z = points[:, 0], points[:, 1], points[:, 2] - HEIGHT
    levels = np.unique(np.arcsin(directions()[:, 2].round(9)))
    ring = np.abs(np.arctan2(z, np.hypot(x, y))[:, None] - levels).argmin(1)
    return np.stack([-y, x, z, np.floor(255 * points[:, 3]), ring], 1).astype(np.float32)


def _points_in(boxes: np.ndarray, points: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """Returns the number of points in each box, whose sides are moved outwards by a margin in metres."""
    counts = []
    for x, y, z, length, width, height, yaw in boxes:
        along = (points[:, :2] - [x, y]) @ rotation(yaw)
        inside = (np.abs(along) < np.array([length, width]) / 2 + margin).all(1)
        counts.append((inside & (points[:, 2] > z + 0.1) & (points[:, 2] < z + height + margin)).sum())
    return np.array(counts)


if __name__ == "__main__":
    write(sys.argv[1])
