"""Evaluates the sets of FOLDER/inputs.json with the nuscenes-devkit and writes FOLDER/results.json. Imports no engine.

A set has arrays [samples, n, ...]: predicted, scores, guesses, predicted_attributes, boxes, labels and attributes, as
engine.metrics.DetectionScore takes them.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics

ERRORS = dict(zip(TP_METRICS, ("translation", "scale", "orientation", "velocity", "attribute"), strict=True))
UNDEFINED = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.moving")


def eval_boxes(classes, boxes, labels, attributes, scores, farthest):
    """Returns the boxes as the devkit holds them, without those that `filter_eval_boxes` removes for their distance."""
    found = EvalBoxes()
    for sample, rows in enumerate(zip(boxes, labels, attributes, scores, strict=True)):
        made = [
            DetectionBox(
                sample_token=str(sample),
                translation=tuple(box[:3]),
                size=(box[4], box[3], box[5]),
                rotation=(math.cos(box[6] / 2), 0.0, 0.0, math.sin(box[6] / 2)),
                velocity=tuple(box[7:]),
                ego_translation=tuple(box[:3]),
                detection_name=classes[label],
                detection_score=score,
                attribute_name=ATTRIBUTES[attribute] if attribute >= 0 else "",
            )
            for box, label, attribute, score in zip(*rows, strict=True)
        ]
        found.add_boxes(str(sample), [box for box in made if box.ego_dist < farthest[box.detection_name]])
    return found


def evaluate(case, classes):
    """Returns the results by the names of engine.metrics.DetectionScore, with means over the classes with labels."""
    config = config_factory("detection_cvpr_2019")
    none = [[-1.0] * len(row) for row in case["labels"]]
    truth = eval_boxes(classes, case["boxes"], case["labels"], case["attributes"], none, config.class_range)
    predicted = eval_boxes(
        classes,
        case["predicted"],
        case["guesses"],
        case["predicted_attributes"],
        case["scores"],
        config.class_range,
    )
    # The devkit counts a class without labels as AP 0 and errors of 1; the engine leaves it out.
    config.class_names = present = [name for name in classes if any(box.detection_name == name for box in truth.all)]
    metrics, found = DetectionMetrics(config), {}
    for name in present:
        for limit in config.dist_ths:
            data = accumulate(truth, predicted, name, config.dist_fcn_callable, limit)
            metrics.add_label_ap(name, limit, calc_ap(data, config.min_recall, config.min_precision))
            if limit == config.dist_th_tp:
                for error in TP_METRICS:
                    undefined = error in UNDEFINED.get(name, ())
                    metrics.add_label_tp(name, error, np.nan if undefined else calc_tp(data, config.min_recall, error))
        found[f"ap/{name}"] = metrics.mean_dist_aps[name]
    for error, name in ERRORS.items():
        found[f"{name}_error"] = metrics.tp_errors[error]
        found |= {f"{name}_error/{label}": metrics.get_label_tp(label, error) for label in present}
    for limit in config.dist_ths:
        found[f"ap/{limit:g}"] = np.mean([metrics.get_label_ap(name, limit) for name in present])
    found |= {"ap": metrics.mean_ap, "": metrics.nd_score}
    return {name: float(value) for name, value in found.items()}


def main(folder):
    """Reads the sets in the folder and writes their results."""
    inputs = json.loads((folder / "inputs.json").read_text())
    results = [evaluate(case, inputs["classes"]) for case in inputs["sets"]]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
