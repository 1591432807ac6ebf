"""KITTI's average precision compared with mmdet3d: boxes at integer places, tied scores, ignored and DontCare regions.

mmdet3d ignores labels exactly as high as the limit, KITTI's code those below it: no label here has such a height.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import evaluated, largest_difference
from benchmarks.references.rows import Row
from engine import metrics
from engine.metrics.results import scalars
from engine.metrics.state import compute

FRAMES, PREDICTIONS, LABELS = 4, 12, 9
TYPES = (0, 0, 0, 3, 3, 5, 5, 1, 4, 2, -1, -1)  # mostly those that count
DONT_CARE = -1
VIEWS = {"2d": "image", "bev": "ground", "3d": "space"}
NAMES = ("predicted", "predicted_2d", "scores", "guesses", "boxes", "boxes_2d", "labels", "truncated", "occluded")
TOLERANCE = 1e-12


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each view."""
    sets = [box_set(seed) for seed in range(cases)]
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case, result in zip(sets, evaluated(environment, {"sets": sets}), strict=True):
        found = engine_results(case)
        for name, value in result.items():
            pairs.setdefault(name.split("/")[0], []).append((found[name], math.nan if value is None else value))
    for view, item in VIEWS.items():
        yield Row(f"KITTI's AP at 40 recalls, {item}, ties", len(sets), largest_difference(pairs[view]), TOLERANCE)


def engine_results(case: dict[str, Any]) -> dict[str, float]:
    """Returns the results of the engine by name, such as "3d/car/easy"."""
    precision = metrics.KittiAveragePrecision.of(*(np.array(case[name]) for name in NAMES))
    found = scalars(compute("m", precision))
    return {name.removeprefix("m/"): value for name, value in found.items() if name != "m"}


def box_set(seed: int) -> dict[str, Any]:
    """Returns frames of boxes on a grid, so that overlaps, and scores of few levels, are often equal."""
    rng = np.random.default_rng(seed)
    frames = FRAMES * (7 if seed % 6 == 2 else 1)  # enough for more matches than recalls
    levels, is_turned = int(rng.choice([1, 3, 50])), seed % 4 == 1
    labels = rng.choice(TYPES, (frames, LABELS))
    labels[:, 0], truncated = (0, 3, 5)[seed % 3], rng.choice([0.0, 0.15, 0.3, 0.5, 0.7], labels.shape)
    boxes, boxes_2d = _boxes(rng, is_turned, *labels.shape), _image_boxes(rng, *labels.shape)
    boxes[labels == DONT_CARE] = [-1000.0, -1000, -1000, -1, -1, -1, -10]
    source = rng.integers(0, LABELS, (frames, PREDICTIONS))
    predicted = np.take_along_axis(boxes, source[..., None], 1)
    predicted_2d, moved = np.take_along_axis(boxes_2d, source[..., None], 1), rng.random(source.shape) < 0.6
    shift = rng.integers(-1, 2, predicted.shape) * [1, 1, 1, 0, 0, 0, 0]
    predicted = np.where(moved[..., None], predicted, predicted + shift * 0.5)
    predicted_2d += np.where(moved, 0, rng.integers(-6, 7, source.shape))[..., None]
    guesses = rng.integers(0, 3, source.shape)
    near = np.take_along_axis(labels, source, 1)
    for guess, types in enumerate(((0, 1), (3, 4), (5,))):
        guesses = np.where(np.isin(near, types) & (rng.random(source.shape) < 0.85), guess, guesses)
    found = {
        "predicted": predicted,
        "predicted_2d": predicted_2d,
        "scores": rng.integers(1, levels + 1, source.shape) / 64,
        "guesses": guesses,
        "boxes": boxes,
        "boxes_2d": boxes_2d,
        "labels": labels,
        "truncated": np.where(rng.random(labels.shape) < 0.5, 0, truncated),
        "occluded": rng.integers(0, 4, labels.shape) * (rng.random(labels.shape) < 0.5),
    }
    return {name: np.asarray(values).tolist() for name, values in found.items()}


def _boxes(rng: np.random.Generator, is_turned: bool, *shape: int) -> np.ndarray:
    """Returns boxes close to each other, `[..., 7]`: two are often at one place, and sides often lie on one line."""
    centers = rng.integers(0, 5, (*shape, 3)) * [3, 0, 3]
    sides = rng.choice([1.0, 2.0, 4.0], (*shape, 3))
    yaw = rng.choice([-2.5, 0.25, 0.5, 1.75], (*shape, 1)) if is_turned else np.zeros((*shape, 1))
    return np.concatenate([centers.astype(float), sides, yaw], -1)


def _image_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns boxes of heights around the limits of 25 and 40 pixels, `[..., 4]`."""
    corner = rng.integers(0, 4, (*shape, 2)) * 20.0
    sides = rng.choice([20.0, 26.0, 39.5, 41.0, 60.0], (*shape, 2))
    return np.concatenate([corner, corner + sides], -1)
