"""nuScenes detection score compared with the nuscenes-devkit: boxes at integer metres and tied scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import evaluated, largest_difference
from benchmarks.references.rows import Row
from engine import metrics
from engine.metrics.results import scalars
from engine.metrics.state import compute

CLASSES = ("car", "pedestrian", "barrier", "traffic_cone")
NUSCENES: dict[str, Any] = {
    "classes": CLASSES,
    "farthest": {"car": 50, "pedestrian": 40, "barrier": 30, "traffic_cone": 30},
    "without": {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")},
    "half_turn": ("barrier",),
}
SAMPLES, PREDICTIONS, LABELS = 4, 16, 8
ITEMS = {
    "": "NDS",
    "ap": "AP",
    **{f"{name}_error": f"{name} error" for name in ("translation", "scale", "orientation", "velocity", "attribute")},
}
TOLERANCE = 1e-12  # the devkit takes the yaw from a quaternion


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of result."""
    sets = [box_set(seed) for seed in range(cases)]
    wanted = evaluated(environment, {"classes": CLASSES, "sets": sets})
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case, result in zip(sets, wanted, strict=True):
        found = engine_results(case)
        for name, value in result.items():
            pairs.setdefault(name.split("/")[0], []).append((found[name], value))
    for name, item in ITEMS.items():
        yield Row(f"{item}, tied scores and distances", len(sets), largest_difference(pairs[name]), TOLERANCE)


def engine_results(case: dict[str, Any]) -> dict[str, float]:
    """Returns the results of the engine by name."""
    names = ("predicted", "scores", "guesses", "boxes", "labels")
    attributes = np.array(case["predicted_attributes"]), np.array(case["attributes"])
    score = metrics.DetectionScore.of(*(np.array(case[name]) for name in names), attributes=attributes, **NUSCENES)
    return {name[2:] if name != "m" else "": value for name, value in scalars(compute("m", score)).items()}


def box_set(seed: int) -> dict[str, Any]:
    """Returns boxes on a grid of metres, so that distances, and scores of few levels, are often equal."""
    rng = np.random.default_rng(seed)
    levels, extent = int(rng.choice([2, 4, 32])), int(rng.choice([6, 40]))

    def boxes(*shape: int) -> np.ndarray:
        yaw = rng.integers(-7, 8, (*shape, 1)) / 4
        sides, velocity = rng.integers(1, 5, (*shape, 3)), rng.integers(-2, 3, (*shape, 2))
        return np.concatenate([rng.integers(-extent, extent + 1, (*shape, 3)), sides, yaw, velocity], -1)

    labelled, label = boxes(SAMPLES, LABELS), rng.integers(0, len(CLASSES), (SAMPLES, LABELS))
    label[:, 0], labelled[:, 0, :2] = 0, rng.integers(-4, 5, (SAMPLES, 2))  # so that at least one label counts
    if seed % 3 == 0:
        labelled[rng.random(label.shape) < 0.2, 7:] = np.nan
    source = rng.integers(0, LABELS, (SAMPLES, PREDICTIONS))
    guesses = np.take_along_axis(label, source, 1)
    predicted = boxes(SAMPLES, PREDICTIONS)
    centres = np.take_along_axis(labelled, source[..., None], 1)[..., :3]
    predicted[..., :3] = centres + rng.integers(-2, 3, centres.shape) * (rng.random(centres.shape) < 0.5)
    if seed % 4 == 1:  # boxes of any float32
        labelled, predicted = (
            (boxes + rng.uniform(-0.3, 0.3, boxes.shape)).astype(np.float32).astype(np.float64)
            for boxes in (labelled, predicted)
        )
    guesses = np.where(rng.random(guesses.shape) < 0.1, rng.integers(0, len(CLASSES), guesses.shape), guesses)
    return {
        "predicted": predicted.tolist(),
        "scores": (rng.integers(0 if seed % 5 == 0 else 1, levels + 1, guesses.shape) / levels).tolist(),
        "guesses": guesses.tolist(),
        "predicted_attributes": rng.integers(0, 3, guesses.shape).tolist(),
        "boxes": labelled.tolist(),
        "labels": label.tolist(),
        "attributes": rng.integers(-1, 3, label.shape).tolist(),
    }
