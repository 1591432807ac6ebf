"""The files of results of KITTI's object detection: a zip archive with a text file for each frame.

A line is a label of KITTI with a score. Truncation and occlusion are -1, which means unknown.
"""

import re
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from engine.base.errors import DataError, TaskError
from engine.submissions.format import SubmissionFormat

CLASSES = ("Car", "Pedestrian", "Cyclist")
"""Names of the classes of KITTI's results; a label is an index into them."""


class Format(SubmissionFormat):
    """Results of the object detection: boxes in the camera and in the image, with class and score."""

    suffix = ".zip"
    predictions: ClassVar = {
        "camera_boxes": "[boxes, 7]: x, y, z of the center of the bottom in the frame of the rectified camera, height, "
        "width, length in metres, and the angle about y, which points down, in radians",
        "image_boxes": "[boxes, 4]: x0, y0, x1, y1 in pixels of the stored image",
        "score": "[boxes]; a box whose score is not finite, or that `valid` leaves out, is not written",
        "label": f"[boxes], integers: index into {', '.join(CLASSES)}",
    }
    entries: ClassVar = {"frame": "name of the frame, text, such as 000017"}

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._frames = set[str]()

    def add(self, prediction: Mapping[str, np.ndarray], example: Mapping[str, Any]) -> None:
        frame = str(example["frame"])
        if not re.fullmatch(r"\w+", frame):
            raise DataError(f"frame {frame!r}: it names a file. Allowed: letters, digits and _, such as 000017.")
        if frame in self._frames:
            raise DataError(f"frame {frame}: it is in the dataset twice, but the results have it once.")
        self._frames.add(frame)
        text = "".join(f"{line}\n" for line in _lines(frame, prediction))
        self._archive.writestr(zipfile.ZipInfo(f"{frame}.txt"), text, zipfile.ZIP_DEFLATED)

    def finish(self) -> None:
        self._archive.close()


def _lines(frame: str, prediction: Mapping[str, np.ndarray]) -> list[str]:
    names = ("camera_boxes", "image_boxes", "score")
    boxes, image, score = (np.asarray(prediction[name], np.float64) for name in names)
    label = np.asarray(prediction["label"])
    rows = score.shape
    if score.ndim != 1 or boxes.shape != (*rows, 7) or image.shape != (*rows, 4) or label.shape != rows:
        raise TaskError(
            f"format = 'kitti': camera_boxes {list(boxes.shape)}, image_boxes {list(image.shape)}, score {list(rows)} "
            f"and label {list(label.shape)} of an example. Allowed: [boxes, 7], [boxes, 4] and twice [boxes]."
        )
    kept = np.isfinite(score) & np.asarray(prediction.get("valid", True), bool)
    kept = np.flatnonzero(kept)[np.argsort(-score[kept], kind="stable")]
    boxes, image, score, label = boxes[kept], image[kept], score[kept], label[kept]
    if not (np.isfinite(boxes).all() and np.isfinite(image).all()) or (boxes[:, 3:6] <= 0).any():
        raise TaskError(f"frame {frame}: a predicted box is not finite, or has no size. Correct Task.predict.")
    if ((label < 0) | (label >= len(CLASSES))).any():
        raise TaskError(f"frame {frame}: a predicted label is no index of a class. Correct Task.predict.")
    alpha = (boxes[:, 6] - np.arctan2(boxes[:, 0], boxes[:, 2]) + np.pi) % (2 * np.pi) - np.pi
    numbers = np.concatenate([alpha[:, None], image, boxes[:, 3:6], boxes[:, :3], boxes[:, 6:]], 1)
    return [
        f"{CLASSES[kind]} -1 -1 {' '.join(f'{number:.4f}' for number in row)} {value:.8g}"
        for kind, row, value in zip(label.tolist(), numbers.tolist(), score.tolist(), strict=True)
    ]
