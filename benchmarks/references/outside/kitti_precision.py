"""Evaluates the sets of FOLDER/inputs.json with mmdet3d and writes FOLDER/results.json. Imports no engine.

A set has arrays by frame: predicted, predicted_2d, scores, guesses, boxes, boxes_2d, labels, truncated and occluded, as
engine.metrics.KittiAveragePrecision takes them. mmdet3d computes overlaps of turned boxes with CUDA in float32: shapely
takes their place.
"""

import importlib.util
import json
import sys
import types
from importlib.metadata import files
from pathlib import Path

import numpy as np
import shapely

TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")  # -1 is the last
CLASSES = ("Car", "Pedestrian", "Cyclist")
VIEWS, LEVELS = {"bbox": "2d", "bev": "bev", "3d": "3d"}, ("easy", "moderate", "hard")
LEAST = np.array([[[0.7, 0.5, 0.5]] * 3])
PACKAGE = "mmdet3d.evaluation.functional.kitti_utils"


def overlaps(boxes, others, criterion=-1):
    """Returns overlaps of boxes x, z, length, width and yaw, as `rotate_iou_gpu_eval` does."""
    one, other = (polygons(x) for x in (boxes, others))
    both = shapely.area(shapely.intersection(one[:, None], other[None]))
    if criterion == 2:
        return both
    return both / (shapely.area(one)[:, None] + shapely.area(other)[None] - both)


def polygons(boxes):
    """Returns the boxes as polygons; y of the camera points down."""
    x, z, length, width, yaw = (boxes[:, i, None] for i in range(5))
    along, across = length / 2 * np.array([[1, 1, -1, -1]]), width / 2 * np.array([[1, -1, -1, 1]])
    corners = [x + np.cos(yaw) * along + np.sin(yaw) * across, z - np.sin(yaw) * along + np.cos(yaw) * across]
    return shapely.polygons(np.stack(corners, -1))


def evaluation():
    """Returns the module eval.py of mmdet3d, whose packages would import torch."""
    path = next(path for path in files("mmdet3d") if str(path).endswith("kitti_utils/eval.py")).locate()
    for name in (PACKAGE, f"{PACKAGE}.rotate_iou"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[f"{PACKAGE}.rotate_iou"].rotate_iou_gpu_eval = overlaps
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def annotations(names, boxes, boxes_2d, **others):
    """Returns the boxes of a frame as mmdet3d holds them."""
    boxes, count = np.array(boxes, float).reshape(-1, 7), len(names)
    found = {key: np.array(value, float) for key, value in others.items()}
    return {
        "name": np.array(names, object),
        "bbox": np.array(boxes_2d, float).reshape(-1, 4),
        "location": boxes[:, :3],
        "dimensions": boxes[:, [5, 3, 4]],  # length, height, width
        "rotation_y": boxes[:, 6],
        "alpha": np.zeros(count),
        **found,
    }


def evaluate(module, case):
    """Returns the average precisions as shares by the names of the engine; None without labels that count."""
    truth, predicted = [], []
    for frame in range(len(case["labels"])):
        own = {name: values[frame] for name, values in case.items()}
        names = [TYPES[label] for label in own["labels"]]
        rows = {"truncated": own["truncated"], "occluded": own["occluded"]}
        truth.append(annotations(names, own["boxes"], own["boxes_2d"], **rows))
        names = [CLASSES[guess] for guess in own["guesses"]]
        predicted.append(annotations(names, own["predicted"], own["predicted_2d"], score=own["scores"]))
    found = {}
    for number, (key, view) in enumerate(VIEWS.items()):
        values = module.do_eval(truth, predicted, [0, 1, 2], LEAST, [key])[4 + number]
        for c, name in enumerate(CLASSES):
            for level, label in enumerate(LEVELS):
                total = sum(module.clean_data(t, p, c, level)[0] for t, p in zip(truth, predicted, strict=True))
                found[f"{view}/{name.lower()}/{label}"] = float(values[c, level, 0]) / 100 if total else None
    return found


def main(folder):
    """Reads the sets in the folder and writes their results."""
    module = evaluation()
    inputs = json.loads((folder / "inputs.json").read_text())
    results = [evaluate(module, case) for case in inputs["sets"]]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
