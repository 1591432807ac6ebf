"""Sources of motion forecasting: splits without a future, names of the targets, and wrong arguments."""

from typing import Any

import pytest

from convoy_zoo.models.traffic.motion_scenes import Argoverse2Scenes, WaymoScenes
from engine import DataError
from tests.models.traffic.motion_files import SIZES, sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("motion")


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Any]:
    return sources(folder)


def test_names_of_targets_are_those_of_the_files(found):
    scenario, record = found["argoverse2"][0], found["argoverse2"].source[0]
    assert scenario["track_id"].tolist() == [*record["track_name"][[0, 1]], ""]
    assert scenario["scenario_id"] == record["scenario_id"]
    scenario, record = found["waymo"][0], found["waymo"].source[0]
    assert scenario["track_id"].tolist() == [*record["track_id"][[0, 1]], -1]
    assert scenario["type"].tolist() == [*record["track_type"][[0, 1]], 0]
    assert scenario["scenario_id"] == record["scenario_id"]


def test_a_split_to_be_predicted_has_the_same_shapes_and_no_future(found, folder):
    train, test = (
        found["argoverse2"][0],
        Argoverse2Scenes("test", str(folder / "argoverse2"), history=5, stride=10, **SIZES)[0],
    )
    assert {name: getattr(x, "shape", 0) for name, x in train.items()} == {
        name: getattr(x, "shape", 0) for name, x in test.items()
    }
    assert test["target"].any() and not test["future_valid"].any()
    train, test = (
        found["waymo"][0],
        WaymoScenes("testing", str(folder / "waymo"), history=5, stride=2, others=5, **SIZES)[0],
    )
    assert {name: getattr(x, "shape", 0) for name, x in train.items()} == {
        name: getattr(x, "shape", 0) for name, x in test.items()
    }
    assert test["states_valid"][:, 0].any() and not test["states_valid"][:, 1:].any() and not test["boxes_valid"].any()


def test_sizes_are_part_of_the_fingerprint(found, folder):
    for source in found.values():
        assert source.fingerprint().startswith(source.source.fingerprint()) and "targets=3" in source.fingerprint()


def test_wrong_arguments_are_errors(folder):
    with pytest.raises(DataError, match="lines = 0: allowed is a whole number from 1 on"):
        WaymoScenes("training", str(folder / "waymo"), lines=0)
    with pytest.raises(DataError, match="the first step is 11 steps before the current one, and the scenarios have 10"):
        WaymoScenes("training", str(folder / "waymo"), history=12)
    with pytest.raises(DataError, match=r"no val/NAME/scenario_NAME\.parquet"):
        Argoverse2Scenes("val", str(folder / "argoverse2"))
    with pytest.raises(DataError, match="nowhere"):
        WaymoScenes("training", str(folder / "nowhere"))
