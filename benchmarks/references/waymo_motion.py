"""Waymo's motion challenge, compared with Waymo's package: its metrics, scenarios of the miniature, and its file.

The forecasts have tied confidences and errors at the limits, and states are missing. `soft_mean_ap` is not compared:
the evaluation of the package has no such number. The package has wheels for Python 3.10 only.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import largest_difference
from benchmarks.references.file_exchange import tree_difference
from benchmarks.references.rows import Row
from convoy_zoo.models.miniatures.waymo_motion import write
from convoy_zoo.models.traffic.motion_scenes import WaymoScenes
from engine import metrics
from engine.driving.waymo_motion import HORIZONS, TYPES
from engine.metrics.results import scalars
from engine.metrics.state import compute
from engine.submissions.waymo import Format

SCENES, AGENTS, OBJECTS, MODES = 24, 6, 3, 6  # of a set; the first objects of a scene are predicted
MOST = 40  # sets, and scenarios
NOW = 10  # current step of a track of 91
NUMBERS = ("min_ade", "min_fde", "miss_rate", "overlap_rate", "mean_ap")
"""The numbers that are compared, in the order of the outside program."""
TOLERANCE = 2e-6  # metres, or a share: distances are float32 in both


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each number, over all types and horizons, and one for each part of the files."""
    count = min(cases, MOST)
    sets = [forecast_set(seed) for seed in range(count)]
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder = Path(name)
        inputs: dict[str, Any] = {key: np.stack([one[key] for one in sets]) for key in sets[0]}
        np.savez(folder / "inputs.npz", **inputs)
        write(folder / "dataset", {"training": count})
        scenarios, submitted = _files(folder)
        environment.run(folder)
        results = json.loads((folder / "results.json").read_text())
    cases_from_now = [from_now(one) for one in sets]
    if environment.golden is not None:
        golden: dict[str, Any] = {**cases_from_now[0], "results": np.array(results["sets"][0])}
        np.savez_compressed(environment.golden / "waymo_motion.npz", **golden)
    pairs: dict[str, list[tuple[float, float]]] = {number: [] for number in NUMBERS}
    for case, rows in zip(cases_from_now, results["sets"], strict=True):
        found = engine_results(case)
        for key, wanted in outside_results(rows).items():
            pairs[key.rpartition("/")[2]].append((found[key], wanted))
    for number, found in pairs.items():
        yield Row(f"{number}, by type and horizon", count, largest_difference(found), TOLERANCE)
    for part in scenarios[0]:
        both = ([each[part] for each in found] for found in (scenarios, results["scenarios"]))
        yield Row(f"miniature: {part}", count, tree_difference(*both), 0)
    yield Row("file of the challenge", count, tree_difference(submitted, results["submission"]), 0)


def outside_results(rows: Any) -> dict[str, float]:
    """Returns the results of the outside program by the names of the engine, such as "vehicle/8s/mean_ap".

    Args:
        rows: NUMBERS of each type and horizon.
    """
    places = [f"{kind}/{horizon}" for kind in TYPES for horizon in HORIZONS]
    return {
        f"{place}/{name}": float(value)
        for place, row in zip(places, rows, strict=True)
        for name, value in zip(NUMBERS, row, strict=True)
    }


def engine_results(case: Mapping[str, Any]) -> dict[str, float]:
    """Returns the results of the engine for a case of `from_now`, by name, such as "vehicle/8s/mean_ap"."""
    found = scalars(compute("m", measured(*(case[name] for name in CASE))))
    return {name.removeprefix("m/"): value for name, value in found.items()}


CASE = ("predicted", "confidences", "states", "valid", "types")


@jax.jit
def measured(predicted: Any, confidences: Any, states: Any, valid: Any, types: Any) -> metrics.WaymoMotion:
    """Returns the metric of the first objects of scenes in which all agents are boxes."""
    boxes, known = states[:, :, 5::5, :5], valid[:, :, 5::5] & valid[:, :, :1]
    own = np.broadcast_to(np.arange(OBJECTS), types[:, :OBJECTS].shape)
    return metrics.WaymoMotion.of(
        predicted,
        confidences,
        states[:, :OBJECTS],
        types[:, :OBJECTS],
        where=valid[:, :OBJECTS],
        others=(boxes, known, own),
    )


def from_now(one: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a set without the steps before the current one, as the engine takes it."""
    return {name: x[:, :, NOW:] if name in ("states", "valid") else x for name, x in one.items()}


def forecast_set(seed: int) -> dict[str, np.ndarray]:
    """Returns `states` `[scenes, agents, 91, 7]`, `valid`, `types`, `predicted` and `confidences`.

    Agents go straight, turn, wind or stand.
    """
    rng = np.random.default_rng(seed)
    states, valid = _tracks(rng)
    predicted = _forecasts(rng, states)
    states[~valid] = 0
    confidences = rng.choice([0, 0.1, 0.25, 0.5], (SCENES, OBJECTS, MODES)).astype(np.float32)
    types = rng.integers(1, 4, (SCENES, AGENTS)).astype(np.int8)
    return {
        "states": states,
        "valid": valid,
        "predicted": predicted,
        "confidences": confidences,
        "types": types,
    }


def _tracks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape = (SCENES, AGENTS)
    speed = rng.choice([0, 0.5, 1.5, 4, 8, 12], shape)
    turn = rng.choice([0, 0, 0.4, -0.4, 1.3, -1.3, 3.0, -3.0], shape)
    heading = rng.choice([0, 0.7, 2.9, -1.6], shape)[..., None] + turn[..., None] * np.arange(-NOW, 81) / 80
    velocity = speed[..., None, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    aside = rng.choice([0, 0, 5, -5], shape)[..., None] * np.arange(-NOW, 81).clip(0) / 80
    place = np.cumsum(velocity, 2) / 10 + np.stack([-np.sin(heading), np.cos(heading)], -1) * aside[..., None]
    place += rng.uniform(-25, 25, (*shape, 1, 2))
    size = np.broadcast_to(rng.choice([0.75, 1.5, 4.5], (*shape, 1, 2)), (*shape, 91, 2))
    states = np.concatenate([np.round(place * 64) / 64, size, heading[..., None], velocity], -1).astype(np.float32)
    valid = (rng.random((*shape, 91)) < 0.85) & (rng.random((*shape, 1)) < 0.95)
    valid |= rng.random((*shape, 1)) < 0.5
    valid[:, :, 0] = True  # Waymo's operation takes another track for one that is never seen
    return states, valid


def _forecasts(rng: np.random.Generator, states: np.ndarray) -> np.ndarray:
    """Returns forecasts `[scenes, objects, modes, 16, 2]`, some of which are just near enough, or just too far.

    Those are 0.1 to 0.6 mm within the limits or beyond, since float32 decides at the limits themselves.
    """
    shape = (SCENES, OBJECTS, MODES)
    now = states[:, :OBJECTS, None, NOW + 5 :: 5]
    steps = np.array([0, 0.5, 1, 2, 3, 6, -1, -2, -3.5])
    steps = np.concatenate([0.9999 * steps, 1.0001 * steps])
    along, across = (rng.choice(steps, shape)[..., None] for _ in range(2))
    share = np.where(rng.random(shape)[..., None] < 0.5, 1, np.arange(1, 17) / 16)
    c, s = np.cos(now[..., 4]), np.sin(now[..., 4])
    off = np.stack([c * along - s * across, s * along + c * across], -1) * share[..., None]
    return (now[..., :2] + off).astype(np.float32)


def _files(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Writes submission.binproto with random futures; returns what outside/waymo_motion.py reads in the files."""
    source = WaymoScenes("training", str(folder / "dataset"), targets=8, account_name="a@example.org", method_name="m")
    rng, scenarios, objects = np.random.default_rng(0), [], {}
    with open(folder / "submission.binproto", "wb") as file:
        submission = Format(file)
        for number in range(len(source)):
            scenarios.append(_scenario(source.source[number]))
            example = source[number]
            futures = rng.normal(0, 9, (8, MODES, 16, 2)).astype(np.float32)
            probability = rng.dirichlet(np.ones(MODES), 8).astype(np.float32)
            submission.add({"trajectories": futures, "probability": probability}, example)
            placed = (futures + example["origin"]).astype(np.float32)
            objects[example["scenario_id"]] = {
                str(track): [
                    [float(probability[row, mode]), placed[row, mode].tolist()]
                    for mode in np.argsort(-probability[row], kind="stable")
                ]
                for row, track in enumerate(example["track_id"].tolist())
                if track >= 0
            }
        submission.finish()
    return scenarios, {"account_name": "a@example.org", "submission_type": 1, "objects": objects}


def _scenario(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the reader has, in the form of outside/waymo_motion.py; a state of an unseen track is zero."""
    state = [found["track_position"], found["track_size"], found["track_heading"][..., None], found["track_velocity"]]
    states = np.where(found["track_valid"][..., None], np.concatenate(state, -1), 0)
    lanes = (found["map_kind"] == 3)[:, None] & found["map_valid"]
    return {
        "scenario_id": found["scenario_id"],
        "seconds": found["timestamps"].tolist(),
        "tracks": dict(zip(map(str, found["track_id"].tolist()), states.tolist(), strict=True)),
        "types": found["track_type"].tolist(),
        "tracks to predict": np.flatnonzero(found["track_to_predict"]).tolist(),
        "points of lanes": found["map_points"][lanes].tolist(),
    }
