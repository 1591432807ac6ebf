import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.ragged.padded import Padded
from engine.readers import Argoverse2Motion

LAYOUT = Path(__file__).parent / "fixtures" / "argoverse2_layout" / "motion"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(LAYOUT, tmp_path / "data"))


def test_scenario_holds_tracks_and_map():
    source = Argoverse2Motion(str(LAYOUT), points=3)
    assert source.names == ["0a", "1b"]
    found = source[1]
    assert (found["scenario_id"], found["city"]) == ("1b", "austin")
    assert found["timestamps"] == pytest.approx(np.arange(8) / 10)
    assert (found["current_time_index"], found["focal_track_index"], found["sdc_track_index"]) == (3, 1, 0)
    assert found["track_name"].tolist() == ["AV", "101", "102"]
    assert found["track_type"].tolist() == [0, 1, 3]
    assert found["track_category"].tolist() == [1, 3, 0]
    assert found["track_valid"].sum(axis=1).tolist() == [8, 8, 6]
    assert found["track_position"][1].tolist() == [[10 + i, 1000 - i] for i in range(8)]
    assert found["track_position"][2, :3].tolist() == [[0, 0], [0, 0], [22, 998]]
    assert found["track_heading"][2, 5] == pytest.approx(0.2)
    assert found["track_velocity"][1, 0].tolist() == [2, -1]
    assert found["map_kind"].tolist() == [0, 0, 1, 2, 3, 3, 4, 4]
    assert found["map_type"].tolist() == [2, 2, 9, 13, -1, -1, -1, -1]
    assert found["map_id"].tolist() == [11, 11, 11, 11, 21, 21, 31, 31]
    assert found["map_intersection"].tolist() == [True] * 4 + [False] * 4
    assert found["map_valid"].sum(axis=1).tolist() == [3, 2, 3, 2, 2, 2, 3, 2]
    assert found["map_points"][7, 1].tolist() == found["map_points"][6, 0].tolist()  # the area is closed
    assert found["map_points"][1].tolist() == [[3, 0, 0.5], [4, 0, 0.5], [0, 0, 0]]


def test_scenarios_are_padded_and_copies_equal():
    source = pickle.loads(pickle.dumps(Argoverse2Motion(str(LAYOUT))))
    assert source.fingerprint() == Argoverse2Motion(str(LAYOUT)).fingerprint()
    others = [source, Argoverse2Motion(str(LAYOUT), points=3), Argoverse2Motion(str(LAYOUT), parts=["tracks"])]
    assert len({one.fingerprint() for one in others}) == 3
    padded = Padded(source, fields=Argoverse2Motion.FIELDS, lengths={"tracks": 4, "map": 8})
    batch = Batches(padded, 2, 0, False)[0].examples
    assert batch["track_position"].shape == (2, 4, 8, 2)
    assert batch["mask"]["tracks"].sum(axis=1).tolist() == [2, 3]
    assert batch["mask"]["map"].sum(axis=1).tolist() == [6, 6]


@pytest.mark.parametrize("damage", ["map", "mark", "table", "type"])
def test_damaged_scenario_is_skipped(folder, damage):
    archive = folder / "train/0a/log_map_archive_0a.json"
    table = folder / "train/0a/scenario_0a.parquet"
    if damage == "map":
        archive.write_text("[]")
    elif damage == "mark":
        archive.write_text(archive.read_text().replace("SOLID_WHITE", "SOLID_PINK"))
    elif damage == "table":
        table.write_bytes(table.read_bytes()[:-100])
    else:
        table.write_bytes(table.read_bytes().replace(b"pedestrian", b"petestrian"))
    name = "log_map_archive_0a.json: no map" if damage in ("map", "mark") else "scenario_0a.parquet: "
    source = Argoverse2Motion(str(folder))
    with pytest.raises(DataError, match=name):
        source[0]
    padded = Padded(source, fields=Argoverse2Motion.FIELDS, lengths={"tracks": 4, "map": 8})
    assert [bad.address for bad in TolerantBatches(Batches(padded, 2, 0, False))[0].bad] == [0]


def test_fingerprint_depends_on_the_map(folder):
    first = Argoverse2Motion(str(folder)).fingerprint()
    archive = folder / "train/1b/log_map_archive_1b.json"
    archive.write_text(archive.read_text().replace("true", "false"))
    assert Argoverse2Motion(str(folder)).fingerprint() != first


def test_wrong_arguments_are_named():
    with pytest.raises(DataError, match=r"parts: found 'maps', allowed: tracks, map. Did you mean map"):
        Argoverse2Motion(str(LAYOUT), parts=["maps"])
    with pytest.raises(DataError, match=r"points = 0: allowed are 1 and more"):
        Argoverse2Motion(str(LAYOUT), points=0)
    with pytest.raises(DataError, match=r"no val/NAME/scenario_NAME.parquet. Correct the path or `split`"):
        Argoverse2Motion(str(LAYOUT), "val")
