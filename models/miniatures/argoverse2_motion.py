"""Writes simulated scenes in the layout of the motion-forecasting dataset of Argoverse 2 (extra `parquet`).

python -m convoy_zoo.models.miniatures.argoverse2_motion FOLDER

A scenario is FOLDER/SPLIT/NAME/scenario_NAME.parquet and log_map_archive_NAME.json, as the package av2 reads them: 110
steps of 0.1 s, of which 50 are observed. The scenarios of `test` end after these 50.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .crossings import LANE, RATE, STEPS, TYPES, Crossing, Lane, crossing

OBSERVED = 50
COUNTS = {"train": 200, "val": 40, "test": 8}
"""Scenarios of each split."""
START = 315_967_200_000_000_000  # nanoseconds


def write(folder: str | Path, counts: Mapping[str, int] = COUNTS, seed: int = 0, agents: int = 10) -> None:
    """Writes scenarios. The same arguments give the same bytes.

    Args:
        folder: made if it is absent.
        counts: split -> number of scenarios; splits are train, val and test.
        seed: changes all scenes.
        agents: moving agents of a scene, besides the recording vehicle.
    """
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            name = str(np.random.default_rng((seed, number, index)).bytes(6).hex())
            place = Path(folder) / split / name
            place.mkdir(parents=True, exist_ok=True)
            scene = crossing((seed, number, index), agents)
            pq.write_table(_table(name, scene, split != "test"), place / f"scenario_{name}.parquet")
            (place / f"log_map_archive_{name}.json").write_text(json.dumps(_map(scene)), encoding="utf-8")


def _table(name: str, scene: Crossing, labelled: bool) -> pa.Table:
    """Returns the tracks of a scene, one row for each state that is known."""
    names = [str(1000 + 7 * n) for n in range(len(scene.types) - 1)] + ["AV"]
    category = np.where(scene.valid.all(1), 1, 0)
    category[: scene.predicted] = 2
    category[0] = 3
    known = scene.valid & (labelled | (np.arange(STEPS) < OBSERVED))
    track, step = np.nonzero(known)
    columns: dict[str, Any] = {
        "observed": step < OBSERVED,
        "track_id": [names[n] for n in track],
        "object_type": [TYPES[n] for n in scene.types[track]],
        "object_category": category[track],
        "timestep": step,
        **dict(
            zip(("position_x", "position_y", "heading", "velocity_x", "velocity_y"), scene.states[known].T, strict=True)
        ),
    }
    whole = {
        "scenario_id": name,
        "start_timestamp": START,
        "end_timestamp": START + (STEPS - 1) * 10**9 // RATE,
        "num_timestamps": STEPS,
        "focal_track_id": names[0],
        "city": "miniature",
        "map_id": 1,
        "slice_id": name,
    }
    return pa.table(columns | {key: [value] * len(track) for key, value in whole.items()})


def _map(scene: Crossing) -> dict[str, Any]:
    edges = [(corners[[0, 1]], corners[[3, 2]]) for corners in scene.crosswalks]
    first = 2000
    return {
        "drivable_areas": {"3000": {"id": 3000, "area_boundary": _points(scene.area)}},
        "lane_segments": {str(100 + lane.number): _segment(lane) for lane in scene.lanes},
        "pedestrian_crossings": {
            str(first + n): {"id": first + n, "edge1": _points(one), "edge2": _points(two)}
            for n, (one, two) in enumerate(edges)
        },
    }


def _segment(lane: Lane) -> dict[str, Any]:
    ahead = np.gradient(lane.points, axis=0)
    left = np.stack([-ahead[:, 1], ahead[:, 0]], -1) / np.hypot(*ahead.T)[:, None] * LANE / 2
    return {
        "id": 100 + lane.number,
        "is_intersection": lane.junction,
        "lane_type": "VEHICLE",
        "centerline": _points(lane.points),
        "left_lane_boundary": _points(lane.points + left),
        "left_lane_mark_type": "NONE" if lane.junction else "DOUBLE_SOLID_YELLOW",
        "right_lane_boundary": _points(lane.points - left),
        "right_lane_mark_type": "NONE" if lane.junction else "SOLID_WHITE",
        "predecessors": [100 + n for n in lane.before],
        "successors": [100 + n for n in lane.after],
        "left_neighbor_id": None,
        "right_neighbor_id": None,
    }


def _points(points: np.ndarray) -> list[dict[str, float]]:
    return [{"x": x, "y": y, "z": 0.0} for x, y in points.round(2).tolist()]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m convoy_zoo.models.miniatures.argoverse2_motion FOLDER")
    write(sys.argv[1])
