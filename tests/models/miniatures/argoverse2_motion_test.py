"""The miniature of Argoverse 2 is read as it was simulated, and has the layout of the dataset.

`python -m benchmarks.references --only=argoverse2_motion` reads it by the package av2, too.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from convoy_zoo.models.miniatures.argoverse2_motion import OBSERVED, write
from convoy_zoo.models.miniatures.crossings import STEPS, TYPES, crossing
from engine.readers import Argoverse2Motion


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("argoverse2")
    write(path, {"train": 2, "test": 1}, agents=4)
    return path


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    write(tmp_path, {"train": 2, "test": 1}, agents=4)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(names) == 6 and names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_scenario_is_the_scene(folder):
    source = Argoverse2Motion(str(folder), points=64)
    scene, found = next(
        (scene, found)
        for found in (source[0], source[1])
        if found["track_position"][0, 0, 0] == (scene := crossing((0, 0, 0), 4)).states[0, 0, 0]
    )
    assert (found["current_time_index"], found["focal_track_index"]) == (OBSERVED - 1, 0)
    assert found["sdc_track_index"] == len(scene.types) - 1
    np.testing.assert_array_equal(found["track_valid"], scene.valid)
    np.testing.assert_array_equal(found["track_position"][scene.valid], scene.states[scene.valid][:, :2])
    np.testing.assert_allclose(found["track_heading"][scene.valid], scene.states[scene.valid][:, 2], rtol=1e-6)
    np.testing.assert_allclose(found["track_velocity"][scene.valid], scene.states[scene.valid][:, 3:], rtol=1e-6)
    assert found["track_category"].tolist()[:2] == [3, 2] and set(found["track_category"][2:]) <= {0, 1}
    lanes = [
        points[valid]
        for kind, points, valid in zip(*(found[f"map_{x}"] for x in ("kind", "points", "valid")), strict=True)
        if kind == 0
    ]
    for lane, points in zip(scene.lanes, lanes, strict=True):
        np.testing.assert_allclose(points[:, :2], lane.points, atol=0.006)  # metres: maps have two digits
    assert sum(found["map_kind"] == 3) == 2 * len(scene.crosswalks) and sum(found["map_kind"] == 4) == 1


def test_scenarios_to_be_predicted_have_no_future(folder):
    found = Argoverse2Motion(str(folder), "test")[0]
    assert len(found["timestamps"]) == STEPS
    assert found["track_valid"][:, :OBSERVED].any() and not found["track_valid"][:, OBSERVED:].any()


def test_lanes_name_their_neighbours(folder):
    archive = json.loads(next(folder.rglob("*.json")).read_text())
    lanes = archive["lane_segments"]
    for lane in lanes.values():
        for other in lane["successors"]:
            assert lane["id"] in lanes[str(other)]["predecessors"]
            assert lanes[str(other)]["centerline"][0] == lane["centerline"][-1]
        assert lane["is_intersection"] == (lane["left_lane_mark_type"] == "NONE")
    assert {"vehicle", "bus", "cyclist", "motorcyclist", "pedestrian", "construction"} == set(TYPES)
