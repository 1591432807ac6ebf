"""Detection on nuScenes: its classes, ranges and attributes, its sweeps as batches, and its score.

All geometry is in a level frame: that of the vehicle, turned so that z points up in the world. So distances and
velocities from above are those of the world, in which the nuscenes-devkit compares boxes.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from engine import DataError, Padded, metrics
from engine.readers import NuScenes

from ..miniatures.folder import make_if_default
from .centers import CenterDetection

CLASSES = ("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle")
CLASSES += ("traffic_cone", "barrier")
GROUPS = (("car",), ("truck", "construction_vehicle"), ("bus", "trailer"), ("barrier",), ("motorcycle", "bicycle"))
GROUPS += (("pedestrian", "traffic_cone"),)
"""Classes that share a head in CenterPoint."""
CATEGORIES = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
"""Category of an annotation -> class of the detection task. Other categories have none."""
FARTHEST = dict[str, float](zip(CLASSES, [50] * 5 + [40] * 3 + [30] * 2, strict=True))
WITHOUT = {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")}
ATTRIBUTES = ("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing", "cycle.with_rider")
ATTRIBUTES += ("cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped")
"""Names in the order of the devkit; the attribute of a box is an index into them."""
_FAST = np.array([5, 5, 5, 5, 5, 0, 3, 3, -1, -1])  # [class] index of the attribute of an object that moves
_SLOW = np.array([6, 6, 7, 6, 6, 2, 4, 4, -1, -1])
SLOWEST = 0.2  # metres per second of an object that moves, as in the code of CenterPoint

VAL = (3, 12, 13, 14, 15, 16, 17, 18, 35, 36, 38, 39, *range(92, 111), 221, *range(268, 279), 329, 330, 331, 332, 344)
VAL += (345, 346, *range(519, 525), *range(552, 566), 625, 626, 627, 629, 630, *range(632, 639), 770, 771, 775, 777)
VAL += (778, *range(780, 785), *range(794, 801), 802, *range(904, 918), *range(919, 932), 962, 963, 966, 967, 968, 969)
VAL += (971, 972, *range(1059, 1074))
"""Numbers of the scenes of the split `val`, as in python-sdk/nuscenes/utils/splits.py of the devkit."""
MINI_VAL = (103, 916)
SPLITS = {"train": (VAL, False), "val": (VAL, True), "mini_train": (MINI_VAL, False), "mini_val": (MINI_VAL, True)}
"""Split -> numbers of scenes, and whether it has these or all others."""
DEFAULT = "data/miniatures/nuscenes"


@dataclasses.dataclass
class NuScenesDetection(CenterDetection):
    """Finds the ten classes of nuScenes, with the attributes that CenterPoint guesses from the speed."""

    groups: Sequence[Sequence[str]] = GROUPS
    classes: Sequence[str] = CLASSES
    apart: Sequence[float] = (2.0, 3.0, 4.0, 4.0, 3.0, 0.35, 0.8, 0.8, 0.35, 1.0)

    def boxes_of(self, heads, x):
        """Returns the boxes of CenterDetection, and `attribute`, an index into ATTRIBUTES or -1."""
        found = super().boxes_of(heads, x)
        speed = jnp.linalg.norm(found["boxes"][..., 7:9], axis=-1)
        attribute = jnp.where(speed > SLOWEST, jnp.asarray(_FAST)[found["label"]], jnp.asarray(_SLOW)[found["label"]])
        return {**found, "attribute": attribute}

    def evaluate(self, model, batch):
        """Returns the detection score. It does not know racks of bicycles, near which the devkit removes boxes."""
        return {"nds": self.score_of(self.predict(model, batch), batch)}

    def score_of(self, found, batch):
        """Returns the detection score of predictions."""
        return metrics.DetectionScore.of(
            found["boxes"],
            found["score"],
            found["label"],
            batch["boxes"],
            batch["label"],
            batch["mask"]["objects"],
            classes=self.names,
            predicted_where=found["valid"],
            attributes=(found["attribute"], batch["attribute"]),
            farthest=FARTHEST,
            without=WITHOUT,
            half_turn=("barrier",),
        )


class Samples:
    """Source of the samples of nuScenes in the level frame, with boxes of the ten classes that have a point.

    - `points`, float32 `[points, 5]`: x, y, z in metres, intensity from 0 to 1, and age in seconds; only those in the
      square of side `2 * reach` around the vehicle, and not on the vehicle.
    - `boxes`, float32 `[objects, 9]`: x, y, z of the centre, length, width, height, heading, velocity along x and y.
    - `label`, `attribute`, int32 `[objects]`: indices into CLASSES and ATTRIBUTES, -1 for no attribute.
    - `sample` and `modality`, text, and `ego_to_world`, float64 `[4, 4]`, for files of results.
    """

    def __init__(self, source: NuScenes, reach: float):
        self.source, self.reach = source, reach
        classes = [CATEGORIES.get(name) for name in source.categories]
        self._label = np.array([-1 if name is None else CLASSES.index(name) for name in classes])
        self._attribute = np.array([*map(ATTRIBUTES.index, source.attributes), -1])
        self.known_names = source.known_names

    def __len__(self):
        return len(self.source)

    def fingerprint(self):
        return f"{self.source.fingerprint()}, reach {self.reach:g}"

    def __getitem__(self, index):
        example = self.source[index]
        pose = example["ego_to_world"]
        level = np.eye(4)
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        level[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        level[:3, 3] = pose[:3, 3]
        turn = level[:3, :3].T @ pose[:3, :3]  # from the ego frame to the level frame
        return {
            **self.inputs(example, turn),
            **self._boxes(example, turn),
            "sample": example["sample"],
            "ego_to_world": level,
        }

    def inputs(self, example, turn):
        """Returns the points, and the modality; `turn` is the rotation from the ego frame to the level frame."""
        return {"points": self._points(example, turn), "modality": "lidar"}

    def _points(self, example, turn):
        points, to_ego = example["LIDAR_TOP"], example["calibration"]["LIDAR_TOP"]["to_ego"].astype(np.float64)
        near = np.abs(points[:, :2]).max(1) < 1.0
        age = points[:, 5:] if points.shape[1] > 5 else np.zeros((len(points), 1), np.float32)
        place = points[:, :3] @ (turn @ to_ego[:3, :3]).T + turn @ to_ego[:3, 3]
        found = np.concatenate([place, points[:, 3:4] / 255, age], 1).astype(np.float32)
        return found[~near & (np.abs(found[:, :2]).max(1) < self.reach)]

    def _boxes(self, example, turn):
        label = self._label[example["box_category"]]
        kept = (label >= 0) & (example["box_points"] + example["box_radar_points"] > 0)
        pose, size = example["box_to_ego"][kept].astype(np.float64), example["box_size"][kept]
        axis = pose[:, :3, 0] @ turn.T
        heading = np.arctan2(axis[:, 1], axis[:, 0])
        velocity = example["box_velocity"][kept].astype(np.float64) @ turn.T
        parts = [pose[:, :3, 3] @ turn.T, size[:, [1, 0, 2]], heading[:, None], velocity[:, :2]]
        return {
            "boxes": np.concatenate(parts, 1).astype(np.float32),
            "label": label[kept].astype(np.int32),
            "attribute": self._attribute[example["box_attribute"][kept]].astype(np.int32),
        }


def sweeps(
    folder: str = DEFAULT,
    split: str = "mini_train",
    version: str = "v1.0-mini",
    sweeps: int = 0,
    reach: float = 51.2,
    points: int = 12_000,
    objects: int = 80,
) -> Padded:
    """Returns the samples of a split, padded.

    Args:
        folder: the dataset. The default is a miniature, which is made if it is absent.
        split: train, val, mini_train or mini_val; "all" for all scenes, as of the version v1.0-test.
        version: folder of the tables.
        sweeps: sweeps before each sample whose points are added; 9 in published models.
        reach: metres ahead, behind, and to both sides.
        points: most points of a sample: about 30,000 for a sweep of nuScenes within 51.2 m.
        objects: most boxes of a sample, more than 200 in nuScenes.
    """
    make_if_default("nuscenes", folder)
    scenes = None if split == "all" else scenes_of(Path(folder) / version, split)
    source = Samples(NuScenes(folder, version, ("LIDAR_TOP",), scenes, sweeps=sweeps, detection=True), reach)
    fields = {"points": ["points"], "objects": ["boxes", "label", "attribute"]}
    return Padded(source, {"points": points, "objects": objects}, fields)


def scenes_of(folder: Path, split: str) -> list[str] | None:
    """Returns the names of the scenes of a split, in the order of the table."""
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: unknown. Allowed: {', '.join(SPLITS)}, all.")
    path = folder / "scene.json"
    if not path.exists():
        return None  # the reader says what is missing
    held_out, wanted = SPLITS[split]
    names = [row["name"] for row in json.loads(path.read_bytes())]
    return [name for name in names if (int(name.removeprefix("scene-")) in held_out) == wanted]
