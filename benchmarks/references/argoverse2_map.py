"""Maps of Argoverse 2: boundaries of drivable areas, lanes and crossings, compared with av2."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged, tree_difference
from benchmarks.references.rows import Row
from engine.readers import Argoverse2Motion

POINTS = 64  # more than any feature has, so that none is cut


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of feature."""
    sets = [_map(np.random.default_rng(seed)) for seed in range(cases)]
    yield from compare_files(environment, {"sets": sets}, compared)


def compared(folder: Path) -> Iterator[Row]:
    """Yields the rows of a folder in which av2 has read the maps."""
    sets, results = exchanged(folder)
    dataset = folder / "dataset"
    for number, archive in enumerate(sets):
        scenario = dataset / "train" / f"{number:05}"
        scenario.mkdir(parents=True)
        (scenario / f"log_map_archive_{number:05}.json").write_text(json.dumps(archive))
        pq.write_table(_tracks(), scenario / f"scenario_{number:05}.parquet")
    source = Argoverse2Motion(str(dataset), parts=["map"], points=POINTS)
    found = [_by_kind(source[number]) for number in range(len(source))]
    shutil.rmtree(dataset)
    for item in results[0]:
        yield Row(item, len(sets), tree_difference([one[item] for one in found], [one[item] for one in results]))


def _by_kind(example: Any) -> dict[str, list[Any]]:
    names = ("centerlines", "left boundaries", "right boundaries", "crossings", "drivable areas")
    found: dict[str, list[Any]] = {name: [] for name in names if name != "centerlines"}
    lines = zip(example["map_kind"].tolist(), example["map_points"], example["map_valid"], strict=True)
    for kind, points, valid in lines:
        if names[kind] in found:
            found[names[kind]].append(points[valid].tolist())
    return found


def _tracks() -> pa.Table:
    """Returns a scenario of one track: the reader needs one for each map."""
    text = {"scenario_id": "x", "city": "austin", "focal_track_id": "AV", "track_id": "AV", "object_type": "vehicle"}
    whole = {"start_timestamp": 0, "end_timestamp": 0, "num_timestamps": 1, "object_category": 3, "timestep": 0}
    rest = dict.fromkeys(("position_x", "position_y", "heading", "velocity_x", "velocity_y"), 0.0)
    return pa.Table.from_pylist([{**text, **whole, **rest, "observed": True}])


def _map(rng: np.random.Generator) -> dict[str, Any]:
    def line(least: int) -> list[dict[str, float]]:
        points = rng.normal(size=(int(rng.integers(least, 12)), 3)).round(2).tolist()
        return [dict(zip("xyz", point, strict=True)) for point in points]

    def lane(number: int) -> dict[str, Any]:
        ends = {"predecessors": [], "successors": [], "left_neighbor_id": None, "right_neighbor_id": None}
        marks = {"left_lane_mark_type": "SOLID_WHITE", "right_lane_mark_type": "NONE"}
        sides = {"left_lane_boundary": line(2), "right_lane_boundary": line(2)}
        return {"id": number, "is_intersection": False, "lane_type": "VEHICLE", **ends, **marks, **sides}

    areas = {str(number): {"id": number, "area_boundary": line(3)} for number in range(int(rng.integers(1, 4)))}
    lanes = {str(number): lane(number) for number in range(10, 10 + int(rng.integers(1, 4)))}
    crossings = {
        str(number): {"id": number, "edge1": line(2)[:2], "edge2": line(2)[:2]}
        for number in range(20, 20 + int(rng.integers(0, 3)))
    }
    return {"drivable_areas": areas, "lane_segments": lanes, "pedestrian_crossings": crossings}
