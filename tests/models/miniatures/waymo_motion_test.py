"""The miniature of Waymo's motion dataset is read as it was simulated."""

from pathlib import Path

import numpy as np
import pytest

from convoy_zoo.models.miniatures.crossings import GO, STEPS, STOP, crossing
from convoy_zoo.models.miniatures.waymo_motion import FUTURE, HISTORY, write
from engine.readers import TFRecord, WaymoScenario


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("waymo")
    write(path, {"training": 3, "testing": 1}, agents=4)
    return path


def source(folder: Path, split: str) -> TFRecord:
    return TFRecord(f"{folder}/{split}/*.tfrecord*", WaymoScenario(points=64))


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    write(tmp_path, {"training": 3, "testing": 1}, agents=4)
    written = sorted(path.relative_to(folder) for path in folder.rglob("*-of-00002"))
    assert [str(path) for path in written[2:]] == [f"training/training.tfrecord-0000{n}-of-00002" for n in (0, 1)]
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in written)


def test_scenario_is_the_scene(folder):
    found, scene = source(folder, "training")[1], crossing((0, 0, 2), 4)  # the second record of the first file
    chosen = slice(STEPS - HISTORY - FUTURE, None)
    states, valid = scene.states[:, chosen], scene.valid[:, chosen]
    assert (found["current_time_index"], len(found["timestamps"])) == (HISTORY - 1, HISTORY + FUTURE)
    np.testing.assert_array_equal(found["track_valid"], valid)
    np.testing.assert_array_equal(found["track_position"][..., :2], np.where(valid[..., None], states[..., :2], 0))
    np.testing.assert_allclose(found["track_heading"], np.where(valid, states[..., 2], 0), rtol=1e-6)
    assert (found["track_size"][valid] > 0).all() and not found["track_size"][~valid].any()
    assert found["track_to_predict"].tolist() == [True, True] + [False] * (len(states) - 2)
    lanes = found["map_kind"] == 3
    for lane, points, known in zip(scene.lanes, found["map_points"][lanes], found["map_valid"][lanes], strict=True):
        np.testing.assert_array_equal(points[known][:, :2], lane.points)
    lights = dict(zip(found["signal_lane"].tolist(), found["signal_state"], strict=True))
    for lane in scene.lanes:
        if lane.junction:
            np.testing.assert_array_equal(lights[lane.number], scene.lights[lane.arm, chosen])
    assert set(np.unique(found["signal_state"])) <= {STOP, GO}


def test_scenarios_to_be_predicted_end_after_the_history(folder):
    found = source(folder, "testing")[0]
    assert len(found["timestamps"]) == HISTORY == found["track_valid"].shape[1]
    assert found["track_to_predict"].sum() == 2
