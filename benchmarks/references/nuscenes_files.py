"""The miniature of nuScenes and files of results, read and evaluated by the nuscenes-devkit.

The predictions are the labels of the miniature with noise, of all classes, some twice and some wrong.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import largest_difference
from benchmarks.references.rows import Row
from convoy_zoo.models.miniatures import nuscenes as miniature
from convoy_zoo.models.street import nuscenes
from engine.metrics.results import scalars
from engine.metrics.state import compute
from engine.readers import NuScenes
from engine.submissions.nuscenes import Format

SPLIT, SWEEPS = "mini_val", 2
SENSORS = ("LIDAR_TOP", "CAM_FRONT", "CAM_BACK_RIGHT")
ERRORS = {"trans_err": "translation", "scale_err": "scale", "orient_err": "orientation", "vel_err": "velocity"}
ERRORS |= {"attr_err": "attribute"}
TOLERANCE = 1e-6  # the scores; the devkit rounds nothing, the engine has boxes in float32
SPACE_M = 1e-4  # positions: float32 within 100 m


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of entry, and for each kind of score; `cases` is the number of samples, up to 20."""
    samples = max(1, min(cases, 20) // 2)
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder = Path(name)
        write_inputs(folder, samples)
        environment.run(folder)
        found = json.loads((folder / "results.json").read_text())
        yield from _reader_rows(folder, found["samples"])
        yield from score_rows(engine_scores(folder), found["scores"])
    if environment.golden is not None:
        with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
            write_inputs(Path(name), 2)
            environment.run(Path(name))
            scores = json.loads((Path(name) / "results.json").read_text())["scores"]
        environment.golden.mkdir(parents=True, exist_ok=True)
        (environment.golden / "nuscenes_files.json").write_text(json.dumps(scores, indent=1) + "\n")


def write_inputs(folder: Path, samples: int) -> None:
    """Writes a miniature to `folder/data`, and predictions in the format of the benchmark to `folder/predictions.json`.

    Args:
        folder: an empty folder.
        samples: number of samples of each of the two scenes.
    """
    miniature.write(folder / "data", (0, 2), samples, 1)
    source = examples(folder)
    with open(folder / "predictions.json", "wb") as file:
        written = Format(file)
        for index in range(len(source)):
            written.add(predictions(source[index], index), source[index])
        written.finish()
    settings = {"version": miniature.VERSION, "split": SPLIT, "sensors": SENSORS, "sweeps": SWEEPS}
    (folder / "inputs.json").write_text(json.dumps(settings))


def examples(folder: Path) -> Any:
    """Returns the padded samples of the miniature in a folder."""
    return nuscenes.sweeps(str(folder / "data"), SPLIT, points=20_000)


def predictions(example: dict[str, Any], index: int) -> dict[str, np.ndarray]:
    """Returns predictions for an example: its labels with noise, twice, some with another class."""
    rng = np.random.default_rng(index)
    rows = np.flatnonzero(example["mask"]["objects"])
    rows = np.concatenate([rows, rows])
    boxes = example["boxes"][rows] + rng.normal(0, [0.4, 0.4, 0.2, 0.1, 0.1, 0.1, 0.3, 1, 1], (len(rows), 9))
    boxes[:, 3:6] = np.maximum(boxes[:, 3:6], 0.1)
    label = example["label"][rows]
    wrong = rng.random(len(rows)) < 0.15
    label = np.where(wrong, rng.integers(0, len(nuscenes.CLASSES), len(rows)), label)
    attribute = np.where(rng.random(len(rows)) < 0.8, example["attribute"][rows], 5)
    score = rng.integers(1, 20, len(rows)) / 20
    return {"boxes": boxes.astype(np.float32), "score": score, "label": label, "attribute": attribute}


class _Given(nuscenes.NuScenesDetection):
    """A Task whose predictions are those of a batch."""

    def predict(self, model: Any, batch: Any) -> Any:
        return model


def engine_scores(folder: Path) -> dict[str, float]:
    """Returns the scores by the names of engine.metrics.DetectionScore."""
    source = examples(folder)
    rows = [source[index] for index in range(len(source))]
    given = [predictions(row, index) for index, row in enumerate(rows)]
    most = max(len(one["score"]) for one in given)
    padded = [
        {name: np.concatenate([x, np.zeros((most - len(x), *x.shape[1:]), x.dtype)]) for name, x in one.items()}
        | {"valid": np.arange(most) < len(one["score"])}
        for one in given
    ]
    parts = (padded, [_numbers(row) for row in rows])
    found, batch = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in parts)
    [score] = _Given().evaluate(found, batch).values()
    return {name.removeprefix("nds").removeprefix("/"): x for name, x in scalars(compute("nds", score)).items()}


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("boxes", "label", "attribute", "mask")}


def score_rows(found: dict[str, float], wanted: dict[str, Any]) -> Iterator[Row]:
    """Yields the comparison of scores with those that the devkit serializes."""
    yield Row("NDS of a file of results", 1, abs(found[""] - wanted["nd_score"]), TOLERANCE)
    yield Row("mAP of a file of results", 1, abs(found["ap"] - wanted["mean_ap"]), TOLERANCE)
    pairs = [(found[f"ap/{name}"], np.mean(list(aps.values()))) for name, aps in wanted["label_aps"].items()]
    yield Row("AP of each class", len(pairs), largest_difference(pairs), TOLERANCE)
    errors = [(found[f"{own}_error"], wanted["tp_errors"][name]) for name, own in ERRORS.items()]
    yield Row("errors of a file of results", len(errors), largest_difference(errors), TOLERANCE)


def _reader_rows(folder: Path, wanted: list[dict[str, Any]]) -> Iterator[Row]:
    source = NuScenes(str(folder / "data"), miniature.VERSION, SENSORS, sweeps=SWEEPS, detection=True)
    differences: dict[str, list[float]] = {}
    for index, sample in enumerate(wanted):
        found = source[index]
        own = dict(zip(found["box_instance"].tolist(), range(len(found["box_instance"])), strict=True))
        order = [own[token] for token in sample["instances"]]
        assert found["sample"] == sample["token"] and len(order) == len(own)
        for sensor, boxes in sample["boxes"].items():
            poses = np.linalg.inv(found["calibration"][sensor]["to_ego"]) @ found["box_to_ego"][order]
            differences.setdefault("boxes in the frames of sensors", []).append(_largest(poses[:, :3], boxes))
        differences.setdefault("sizes of boxes", []).append(_largest(found["box_size"][order], sample["sizes"]))
        differences.setdefault("velocities", []).append(_largest(_world(found, order), sample["velocities"]))
        points = found["LIDAR_TOP"]
        differences.setdefault("points of three sweeps", []).append(
            _largest(points[np.abs(points[:, :2]).max(1) >= 1.0][::20, :4], sample["points"])
        )
        for sensor, matrix in sample["intrinsics"].items():
            intrinsics = found["calibration"][sensor]["intrinsics"]
            differences.setdefault("intrinsics of cameras", []).append(_largest(intrinsics, matrix))
    for item, values in differences.items():
        yield Row(item, len(values), max(values), SPACE_M)


def _world(example: dict[str, Any], order: list[int]) -> np.ndarray:
    return example["box_velocity"][order] @ example["ego_to_world"][:3, :3].T


def _largest(found: Any, wanted: Any) -> float:
    a, b = (np.asarray(x, np.float64) for x in (found, wanted))
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))
