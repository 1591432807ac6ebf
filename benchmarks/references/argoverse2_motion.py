"""Scenarios of the miniature of Argoverse 2, and the file of its challenge, as the package av2 reads them."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import tree_difference
from benchmarks.references.rows import Row
from convoy_zoo.models.miniatures.argoverse2_motion import write
from convoy_zoo.models.traffic.motion_scenes import Argoverse2Scenes
from engine.readers import Argoverse2Motion
from engine.readers.argoverse2_motion import TYPES
from engine.submissions.argoverse2 import Format

MOST = 40  # scenarios of a split
MODES, STEPS = 6, 60
TOLERANCE = 1e-6  # headings and velocities are float32 in the engine


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each part of the scenarios, and one for the file of the challenge."""
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder = Path(name)
        count = min(cases, MOST)
        write(folder / "dataset", {"train": count, "test": count})
        names, found = [], []
        for split in ("train", "test"):
            source = Argoverse2Motion(str(folder / "dataset"), split, points=64)
            names += [f"{split}/{name}" for name in source.names]
            found += [_scenario(source[number]) for number in range(len(source))]
        submitted = _submit(folder)
        (folder / "inputs.json").write_text(json.dumps({"names": names}))
        environment.run(folder)
        results = json.loads((folder / "results.json").read_text())
    for item in found[0]:
        wanted = [each[item] for each in results["scenarios"]]
        yield Row(item, len(found), tree_difference([each[item] for each in found], wanted), TOLERANCE)
    yield Row("file of the challenge", len(submitted), tree_difference(submitted, results["submission"]), 1e-9)


def _scenario(found: Any) -> dict[str, Any]:
    """Returns what the reader has, in the form of outside/argoverse2_motion.py."""
    names = found["track_name"].tolist()
    state = [found["track_position"], found["track_heading"][..., None], found["track_velocity"]]
    states, now = np.concatenate(state, -1), int(found["current_time_index"])
    tracks = {
        name: [[step, *states[row, step].tolist(), int(step <= now)] for step in np.flatnonzero(valid).tolist()]
        for row, (name, valid) in enumerate(zip(names, found["track_valid"], strict=True))
    }
    lines = zip(found["map_kind"], found["map_points"], found["map_valid"], strict=True)
    return {
        "scenario_id": found["scenario_id"],
        "city": found["city"],
        "focal": names[int(found["focal_track_index"])],
        "seconds": found["timestamps"].tolist(),
        "types": dict(zip(names, (TYPES[kind] for kind in found["track_type"]), strict=True)),
        "categories": dict(zip(names, found["track_category"].tolist(), strict=True)),
        "tracks": tracks,
        "boundaries": [points[valid].tolist() for kind, points, valid in lines if kind == 1],
        "crossings": int((found["map_kind"] == 3).sum()) // 2,
    }


def _submit(folder: Path) -> dict[str, Any]:
    """Writes submission.parquet with random futures, and returns what av2 reads there: by falling probability."""
    source, rng, wanted = Argoverse2Scenes("test", str(folder / "dataset"), targets=1), np.random.default_rng(0), {}
    with open(folder / "submission.parquet", "wb") as file:
        submission = Format(file)
        for number in range(len(source)):
            example = source[number]
            futures = rng.normal(0, 9, (1, MODES, STEPS, 2)).astype(np.float32)
            probability = rng.dirichlet(np.ones(MODES), 1).astype(np.float32)
            submission.add({"trajectories": futures, "probability": probability}, example)
            order = np.argsort(-probability[0])
            shares = probability[0, order].astype(np.float64)
            placed = futures[0, order] + example["origin"]
            tracks = {example["track_id"][0]: placed.tolist()}
            wanted[example["scenario_id"]] = [(shares / shares.sum()).tolist(), {str(k): v for k, v in tracks.items()}]
        submission.finish()
    return wanted
