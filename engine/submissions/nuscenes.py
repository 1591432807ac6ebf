"""The file of results of the detection task of nuScenes, as the evaluation of the nuscenes-devkit reads it.

Boxes are predicted in the ego frame, and written in the global frame. The file is JSON, streamed sample by sample.
"""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from engine.base.errors import DataError, TaskError
from engine.submissions.format import SubmissionFormat

CLASSES = ("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle")
CLASSES += ("traffic_cone", "barrier")
"""Names of the detection task, in the order of the devkit; a label is an index into them."""
ATTRIBUTES = ("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing", "cycle.with_rider")
ATTRIBUTES += ("cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped")
"""Names of the attributes, in the order of the devkit."""
MOST_BOXES = 500  # of a sample, by the rules of the task
SENSORS = ("camera", "lidar", "radar", "map", "external")


class Format(SubmissionFormat):
    """Results of the detection task: boxes of each sample, with velocity, class, score and attribute."""

    suffix = ".json"
    predictions: ClassVar = {
        "boxes": "[boxes, 9]: x, y, z of the centre, length, width, height in metres, heading in radians, and velocity "
        "along x and y in metres per second, in the ego frame",
        "score": "[boxes], 0 to 1; a box whose score is not finite, or that `valid` leaves out, is not written",
        "label": f"[boxes], integers: index into {', '.join(CLASSES)}",
        "attribute": f"[boxes], integers: index into {', '.join(ATTRIBUTES)}; -1 for none",
    }
    entries: ClassVar = {
        "sample": "token of the sample, text",
        "ego_to_world": "[4, 4], float64: pose of the ego frame",
        "modality": f"text: which inputs the model uses, of {', '.join(SENSORS)}, separated by commas",
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._modality = ""
        self._samples = set[str]()

    def add(self, prediction: Mapping[str, np.ndarray], example: Mapping[str, Any]) -> None:
        sample, modality = str(example["sample"]), str(example["modality"])
        if sample in self._samples:
            raise DataError(f"sample {sample}: it is in the dataset twice, but the file of results has it once.")
        if not self._samples:
            self._begin(modality)
        elif modality != self._modality:
            raise DataError(f"sample {sample}: modality is {modality!r}, but {self._modality!r} before. Use one text.")
        boxes = _boxes(sample, prediction, np.asarray(example["ego_to_world"], np.float64))
        text = f"{json.dumps(sample)}: {json.dumps(boxes, allow_nan=False)}"
        self.file.write(f"{',' if self._samples else ''}\n{text}".encode())
        self._samples.add(sample)

    def finish(self) -> None:
        if not self._samples:
            self._begin("")
        self.file.write(b"}}\n")

    def _begin(self, modality: str) -> None:
        used = [word for word in modality.split(",") if word]
        if unknown := [word for word in used if word not in SENSORS]:
            raise DataError(f"modality = {modality!r}: {unknown[0]!r} is unknown. Allowed: {', '.join(SENSORS)}.")
        meta = {f"use_{sensor}": sensor in used for sensor in SENSORS}
        self._modality = modality
        self.file.write(f'{{"meta": {json.dumps(meta)}, "results": {{'.encode())


def _boxes(sample: str, prediction: Mapping[str, np.ndarray], ego_to_world: np.ndarray) -> list[dict[str, Any]]:
    boxes, score = (np.asarray(prediction[name], np.float64) for name in ("boxes", "score"))
    label, attribute = (np.asarray(prediction[name]) for name in ("label", "attribute"))
    if boxes.shape != (*score.shape, 9) or score.ndim != 1 or not label.shape == attribute.shape == score.shape:
        raise TaskError(
            f"format = 'nuscenes': boxes {list(boxes.shape)}, score {list(score.shape)}, label {list(label.shape)} and "
            f"attribute {list(attribute.shape)} of an example. Allowed: [boxes, 9] and three times [boxes]."
        )
    kept = np.isfinite(score) & np.asarray(prediction.get("valid", True), bool)
    kept = np.flatnonzero(kept)[np.argsort(-score[kept], kind="stable")][:MOST_BOXES]
    boxes, label, attribute = boxes[kept], label[kept], attribute[kept]
    if not np.isfinite(boxes).all() or (boxes[:, 3:6] <= 0).any():
        raise TaskError(f"sample {sample}: a predicted box is not finite, or has no size. Correct Task.predict.")
    if ((label < 0) | (label >= len(CLASSES)) | (attribute < -1) | (attribute >= len(ATTRIBUTES))).any():
        raise TaskError(f"sample {sample}: a predicted label or attribute is no index of a name. Correct Task.predict.")
    turn = ego_to_world[:3, :3]
    centre = boxes[:, :3] @ turn.T + ego_to_world[:3, 3]
    speed = np.concatenate([boxes[:, 7:], np.zeros((len(boxes), 1))], 1) @ turn.T
    rotation = _quaternions(turn, boxes[:, 6])
    names = zip(label.tolist(), attribute.tolist(), strict=True)
    rows = zip(centre.tolist(), boxes[:, [4, 3, 5]].tolist(), rotation.tolist(), speed[:, :2].tolist(), strict=True)
    return [
        {
            "sample_token": sample,
            "translation": place,
            "size": size,
            "rotation": quaternion,
            "velocity": velocity,
            "detection_name": CLASSES[name],
            "detection_score": value,
            "attribute_name": ATTRIBUTES[kind] if kind >= 0 else "",
        }
        for (place, size, quaternion, velocity), (name, kind), value in zip(
            rows, names, score[kept].tolist(), strict=True
        )
    ]


def _quaternions(turn: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Returns the rotations by a heading about z and then by a matrix, as quaternions w, x, y, z, `[boxes, 4]`.

    The quaternion of the matrix is an eigenvector (Bar-Itzhack 2000, doi:10.2514/2.4654): no case loses digits.
    """
    (a, b, c), (d, e, f), (g, h, i) = turn
    table = [
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e],
    ]
    w, x, y, z = np.linalg.eigh(np.array(table))[1][:, -1]
    cos, sin = np.cos(heading / 2), np.sin(heading / 2)
    return np.stack([w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, w * sin + z * cos], 1)
