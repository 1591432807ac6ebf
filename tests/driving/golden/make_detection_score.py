"""Writes detection_score.json: random boxes, and their results by the nuscenes-devkit.

pip install --no-deps nuscenes-devkit==1.2.0
pip install numpy pyquaternion matplotlib tqdm scipy cachetools opencv-python-headless shapely scikit-learn Pillow
python tests/driving/golden/make_detection_score.py
"""

import json
import math
import pathlib

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics

CLASSES = ["car", "pedestrian", "barrier", "traffic_cone"]
ATTRIBUTES = ["vehicle.moving", "vehicle.parked", "pedestrian.moving"]
SIZES = [(4.5, 1.9, 1.6), (0.7, 0.7, 1.8), (0.5, 2.5, 1.0), (0.4, 0.4, 1.0)]
SAMPLES, PREDICTIONS, LABELS = 8, 14, 10
NOISE = {"accurate": 0.2, "coarse": 1.0, "poor": 3.0}  # metres


def inputs(seed: int, noise: float) -> dict[str, list]:
    """Returns labels, and predictions near them or anywhere, of float32 values."""
    rng = np.random.default_rng(seed)

    def boxes(label: np.ndarray, centre: np.ndarray) -> np.ndarray:
        size = np.array(SIZES)[label] * np.exp(rng.normal(0, 0.1, (*label.shape, 3)))
        rest = [rng.uniform(-np.pi, np.pi, (*label.shape, 1)), rng.normal(0, 2, (*label.shape, 2))]
        return np.concatenate([centre, size, *rest], -1)

    label = rng.integers(0, len(CLASSES), (SAMPLES, LABELS))
    label[:, -1] = 0
    place = np.concatenate([rng.uniform(-40, 40, (SAMPLES, LABELS, 2)), np.ones((SAMPLES, LABELS, 1))], -1)
    labelled = boxes(label, place)
    labelled[rng.random((SAMPLES, LABELS)) < 0.1, 7:] = np.nan  # no velocity
    source = rng.integers(0, LABELS, (SAMPLES, PREDICTIONS))
    guess = np.take_along_axis(label, source, 1)
    near = np.take_along_axis(labelled, source[..., None], 1)
    guess = np.where(rng.random(guess.shape) < 0.1, rng.integers(0, len(CLASSES), guess.shape), guess)
    predicted = boxes(guess, near[..., :3] + rng.normal(0, noise, (SAMPLES, PREDICTIONS, 3)))
    predicted[..., 6] = near[..., 6] + rng.normal(0, 0.4, guess.shape)
    known = ~np.isnan(near[..., 7:])
    predicted[..., 7:] = np.where(known, np.nan_to_num(near[..., 7:]) + rng.normal(0, 0.5, known.shape), 0)
    return {
        "boxes": labelled.astype(np.float32).tolist(),
        "labels": label.tolist(),
        "attributes": rng.integers(-1, len(ATTRIBUTES), label.shape).tolist(),
        "predicted": predicted.astype(np.float32).tolist(),
        "guesses": guess.tolist(),
        "predicted_attributes": rng.integers(0, len(ATTRIBUTES), guess.shape).tolist(),
        "scores": rng.permutation(np.linspace(0.05, 0.95, guess.size)).reshape(guess.shape).astype(np.float32).tolist(),
    }


def eval_boxes(boxes, labels, attributes, scores, farthest) -> EvalBoxes:
    """Returns the boxes as the devkit holds them, without those that it leaves out for their distance."""
    found = EvalBoxes()
    for sample, rows in enumerate(zip(boxes, labels, attributes, scores, strict=True)):
        made = []
        for box, label, attribute, score in zip(*rows, strict=True):
            x, y, z, length, width, height, yaw, vx, vy = box
            name = CLASSES[label]
            if math.hypot(x, y) >= farthest[name]:
                continue
            made.append(
                DetectionBox(
                    sample_token=str(sample),
                    translation=(x, y, z),
                    size=(width, length, height),
                    rotation=(math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)),
                    velocity=(vx, vy),
                    detection_name=name,
                    detection_score=score,
                    attribute_name=ATTRIBUTES[attribute] if attribute >= 0 else "",
                )
            )
        found.add_boxes(str(sample), made)
    return found


def results(case: dict[str, list]) -> dict[str, float]:
    """Returns the results of the devkit by the names of engine.metrics.DetectionScore."""
    config = config_factory("detection_cvpr_2019")
    none = [[-1.0] * LABELS] * SAMPLES
    labels = eval_boxes(case["boxes"], case["labels"], case["attributes"], none, config.class_range)
    predicted = eval_boxes(
        case["predicted"], case["guesses"], case["predicted_attributes"], case["scores"], config.class_range
    )
    config.class_names = CLASSES
    metrics, found = DetectionMetrics(config), {}
    for name in CLASSES:
        for limit in config.dist_ths:
            data = accumulate(labels, predicted, name, config.dist_fcn_callable, limit)
            metrics.add_label_ap(name, limit, calc_ap(data, config.min_recall, config.min_precision))
            if limit == config.dist_th_tp:
                for error in TP_METRICS:
                    undefined = name == "traffic_cone" and error in ("attr_err", "vel_err", "orient_err")
                    undefined |= name == "barrier" and error in ("attr_err", "vel_err")
                    metrics.add_label_tp(name, error, np.nan if undefined else calc_tp(data, config.min_recall, error))
        found[f"ap/{name}"] = metrics.mean_dist_aps[name]
    names = dict(zip(TP_METRICS, ("translation", "scale", "orientation", "velocity", "attribute"), strict=True))
    for error, name in names.items():
        found[f"{name}_error"] = metrics.tp_errors[error]
        found |= {f"{name}_error/{label}": metrics.get_label_tp(label, error) for label in CLASSES}
    for limit in config.dist_ths:
        found[f"ap/{limit:g}"] = np.mean([metrics.get_label_ap(name, limit) for name in CLASSES])
    found |= {"ap": metrics.mean_ap, "": metrics.nd_score}
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    cases = {}
    for seed, (name, noise) in enumerate(NOISE.items()):
        cases[name] = inputs(seed, noise)
        cases[name]["results"] = results(cases[name])
    pathlib.Path(__file__).with_name("detection_score.json").write_text(json.dumps(cases) + "\n", encoding="utf-8")
