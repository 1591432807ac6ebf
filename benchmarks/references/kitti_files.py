"""Frames of the miniature of KITTI, and the archive of its results, as mmdet3d reads them."""

import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import tree_difference
from benchmarks.references.rows import Row
from convoy_zoo.models.miniatures.kitti import write
from convoy_zoo.models.street.kitti import frames
from engine.submissions.kitti import CLASSES, Format

MOST = 40  # frames
BOXES = 20  # of a result
MATRICES = ("P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo")
LABELS = {"box_2d": "bbox", "box_size": "size", "box_bottom": "location", "box_yaw": "rotation_y"}
LABELS |= {"box_alpha": "alpha", "truncated": "truncated", "occluded": "occluded"}
"""Entry of KittiObject -> name of mmdet3d."""
DIGITS = 1e-4  # of numbers in the archive


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each part of the frames, and one for the archive of results."""
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder, count = Path(name), min(cases, MOST)
        write(folder / "dataset", frames=count, held_out=0, testing=1)
        source = frames(str(folder / "dataset")).source
        found = [_frame(source.source[number], source[number]) for number in range(count)]
        submitted = _submit(folder, found)
        environment.run(folder)
        results = json.loads((folder / "results.json").read_text())
    for part in found[0]:
        both = ([each[part] for each in rows] for rows in (found, results["frames"]))
        yield Row(part, count, tree_difference(*both), 0)
    yield Row("archive of results", count, tree_difference(submitted, results["results"]), DIGITS)


def _frame(stored: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the reader and the source have, in the form of outside/kitti_files.py."""
    return {
        "name": stored["frame"],
        "height and width of the image": example["image_size"].astype(int).tolist(),
        "calibration": {name: stored["calib"][name].tolist() for name in MATRICES},
        "classes": ["DontCare" if kind < 0 else str(name) for kind, name in _kinds(stored)],
        "labels": {theirs: stored[ours].tolist() for ours, theirs in LABELS.items()},
    }


def _kinds(stored: Mapping[str, Any]) -> list[tuple[int, str]]:
    return list(zip(stored["box_type"].tolist(), stored["box_name"].tolist(), strict=True))


def _submit(folder: Path, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes random boxes as an archive, unpacks it in `results`, and returns its content by frame, the best first."""
    rng, wanted = np.random.default_rng(0), {}
    with open(folder / "results.zip", "wb") as file:
        submission = Format(file)
        for frame in found:
            boxes = np.concatenate([rng.normal(0, 30, (BOXES, 3)), rng.uniform(0.3, 9, (BOXES, 3))], 1)
            boxes = np.concatenate([boxes, rng.uniform(-3, 3, (BOXES, 1))], 1).astype(np.float32)
            image = rng.uniform(0, 1242, (BOXES, 4)).astype(np.float32)
            score, label = rng.random(BOXES).astype(np.float32), rng.integers(0, len(CLASSES), BOXES)
            valid = rng.random(BOXES) < 0.8
            prediction = {"camera_boxes": boxes, "image_boxes": image, "score": score, "label": label, "valid": valid}
            submission.add(prediction, {"frame": frame["name"]})
            order = [row for row in np.argsort(-score).tolist() if valid[row]]
            wanted[frame["name"]] = {
                "classes": [CLASSES[label[row]] for row in order],
                "bbox": image[order].tolist(),
                "size": boxes[order, 3:6].tolist(),
                "location": boxes[order, :3].tolist(),
                "rotation_y": boxes[order, 6].tolist(),
                "score": score[order].tolist(),
            }
        submission.finish()
    with zipfile.ZipFile(folder / "results.zip") as archive:
        archive.extractall(folder / "results")
    return wanted
