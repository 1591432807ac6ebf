"""Detection on KITTI: its sweeps and labels as batches, and its average precision at 40 recalls.

Boxes are learned in the frame of the lidar. The metric and the files of results have them in the frames of the camera
and of the image, as the labels of KITTI.
"""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine import DataError, Padded, metrics
from engine.readers import KittiObject

from ..miniatures.folder import make_if_default
from .centers import CenterDetection
from .kitti_frames import camera_boxes, clipped, image_boxes, lidar_boxes

CLASSES = ("car", "pedestrian", "cyclist")
TYPES = {0: 0, 3: 1, 5: 2}  # number in KittiObject's `box_type` -> class
DEFAULT = "data/miniatures/kitti"
USUAL_SIZE = (375, 1242)  # height and width of an image that is not there


@dataclasses.dataclass
class KittiDetection(CenterDetection):
    """Finds cars, pedestrians and cyclists ahead of the vehicle; `boxes` are in the frame of the lidar."""

    groups: Sequence[Sequence[str]] = (("car",), ("pedestrian", "cyclist"))
    classes: Sequence[str] = CLASSES
    lower: Sequence[float] = (0.0, -40.0, -3.0)
    upper: Sequence[float] = (70.4, 40.0, 1.0)
    cells: Sequence[int] = (176, 200)
    inputs: int = 4
    predictions: int = 50
    apart: Sequence[float] = (2.0, 0.4, 0.8)
    full_precision = ("points", "boxes", "to_camera", "projection")

    def predict(self, model, batch):
        """Returns the boxes of CenterDetection, and these in the frames of the camera and of the image."""
        found = super().predict(model, batch)
        boxes = camera_boxes(found["boxes"], batch["to_camera"])
        image = clipped(image_boxes(boxes, batch["projection"]), batch["image_size"])
        return {**found, "camera_boxes": boxes, "image_boxes": image}

    def evaluate(self, model, batch):
        """Returns the average precision of KITTI. Objects behind the camera count as any other false positive."""
        found = self.predict(model, batch)
        precision = metrics.KittiAveragePrecision.of(
            found["camera_boxes"],
            found["image_boxes"],
            found["score"],
            found["label"],
            batch["label_boxes"],
            batch["label_2d"],
            batch["label_type"],
            batch["truncated"],
            batch["occluded"],
            batch["mask"]["labels"],
            predicted_where=found["valid"],
        )
        return {"kitti": precision}


class Frames:
    """Source of the frames of KITTI, ragged, in metres in the frame of the lidar.

    - `points`, float32 `[points, 4]`: x, y, z, reflectance, ahead of the lidar and at most `reach` to each side.
    - `boxes`, float32 `[objects, 9]`, and `label`, int32 `[objects]`: the objects of CLASSES; velocities are NaN.
    - `label_boxes` `[labels, 7]`, `label_2d` `[labels, 4]`, `label_type`, `truncated`, `occluded` `[labels]`: all
      labels, as KittiObject gives them.
    - `to_camera` and `projection`, float32 `[3, 4]`; `image_size` (height, width), float32 `[2]`; `frame`, text.

    Args:
        source: frames with lidar, calib and, if there are labels, boxes.
        reach: metres.
    """

    def __init__(self, source: KittiObject, reach: float):
        self.source, self.reach = source, reach
        self.known_names = source.known_names

    def __len__(self):
        return len(self.source)

    def fingerprint(self):
        return f"{self.source.fingerprint()}, reach {self.reach:g}"

    def __getitem__(self, index):
        example = self.source[index]
        points, calib = example["lidar"], example["calib"]
        near = (points[:, 0] > 0) & (np.abs(points[:, :2]) < self.reach).all(1)
        to_camera = calib["R0_rect"].astype(np.float64) @ calib["Tr_velo_to_cam"].astype(np.float64)
        found = {
            "points": points[near],
            "to_camera": to_camera.astype(np.float32),
            "projection": calib["P2"],
            "image_size": np.array(_image_size(Path(self.source.folder, "image_2", f"{example['frame']}.png"))),
            "frame": example["frame"],
        }
        return found | (_labels(example, to_camera) if "box_type" in example else {})


def _labels(example, to_camera):
    parts = [example["box_bottom"], example["box_size"], example["box_yaw"][:, None]]
    boxes, kind = np.concatenate(parts, 1), example["box_type"]
    kept = np.isin(kind, list(TYPES))
    own = lidar_boxes(boxes[kept].astype(np.float64), to_camera, np)
    unknown = np.full((len(own), 2), np.nan)
    return {
        "boxes": np.concatenate([own, unknown], 1).astype(np.float32),
        "label": np.array([TYPES[number] for number in kind[kept].tolist()], np.int32),
        "label_boxes": boxes,
        "label_2d": example["box_2d"],
        "label_type": kind,
        "truncated": example["truncated"],
        "occluded": example["occluded"],
    }


def _image_size(path):
    """Returns the height and the width in the header of a PNG, float32; those of most images if it is absent."""
    if not path.exists():
        return np.array(USUAL_SIZE, np.float32)
    with path.open("rb") as file:
        return np.array(struct.unpack(">II", file.read(24)[16:])[::-1], np.float32)


def frames(
    folder: str = DEFAULT,
    split: str = "train",
    reach: float = 70.4,
    points: int = 24_000,
    objects: int = 32,
    labels: int = 48,
) -> Padded:
    """Returns the frames of a split, padded.

    Args:
        folder: the dataset. The default is a miniature, which is made if it is absent.
        split: a file of names in `ImageSets`, such as train, val or trainval; or test, the frames of `testing`, which
            have no labels and so can be predicted only.
        reach: metres ahead and to both sides.
        points: most points of a frame: about 60,000 of KITTI within 70 m ahead, 20,000 of them in the image.
        objects: most cars, pedestrians and cyclists of a frame.
        labels: most labels of a frame, with those of other classes and DontCare regions.
    """
    make_if_default("kitti", folder)
    path = Path(folder, "ImageSets", f"{split}.txt")
    if not path.is_file() and split != "test":
        raise DataError(
            f"{path}: absent. Write the names of the frames of this split there, such as 000017, one a line."
        )
    names = path.read_text().split() if path.is_file() else None
    fields = {"points": ["points"]}
    if split == "test":
        return Padded(
            Frames(KittiObject(folder, "testing", ("lidar", "calib"), names), reach), {"points": points}, fields
        )
    fields |= {"objects": ["boxes", "label"]}
    fields |= {"labels": ["label_boxes", "label_2d", "label_type", "truncated", "occluded"]}
    source = KittiObject(folder, "training", ("lidar", "calib", "boxes"), names)
    return Padded(Frames(source, reach), {"points": points, "objects": objects, "labels": labels}, fields)
