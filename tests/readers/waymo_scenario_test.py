import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.base.errors import DataError
from engine.data.batches import Batches
from engine.readers import TFRecord, WaymoScenario
from tests.properties import examples
from tests.readers.wire_format import field, read_tf_record

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "scenarios.json").read_text())
LINES = {name: (i, "polyline") for i, name in enumerate(("lane", "road_line", "road_edge"), start=3)}
AREAS = {name: (i, "polygon") for i, name in enumerate(("crosswalk", "speed_bump", "driveway"), start=8)}
KINDS = {**LINES, "stop_sign": (7, "position"), **AREAS}


@pytest.fixture
def path(tmp_path):
    return str(shutil.copy(FIXTURES / "scenarios.tfrecord", tmp_path))


def from_states(scenario, *names):
    values = [[[state.get(name, 0) for name in names] for state in track["states"]] for track in scenario["tracks"]]
    return np.array(values)


def polylines(scenario, size):
    """Yields (kind, type, id, speed limit, points) of each piece of each map feature."""
    for feature in scenario.get("map_features", []):
        (name,) = feature.keys() - {"id"}
        kind, entry = KINDS[name]
        points = feature[name][entry]
        for piece in itertools.batched(points if isinstance(points, list) else [points], size):
            xyz = [[point.get(axis, 0) for axis in "xyz"] for point in piece]
            limit = feature[name].get("speed_limit_mph", 0)
            yield kind, feature[name].get("type", 0), int(feature["id"]), limit, xyz


@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_tracks_are_those_that_protobuf_reads(path, index):
    found, scenario = TFRecord(path, WaymoScenario())[index], GOLDEN[index]
    assert found["scenario_id"] == scenario["scenario_id"]
    assert found["timestamps"].tolist() == scenario["timestamps_seconds"]
    assert found["current_time_index"] == scenario["current_time_index"]
    assert found["sdc_track_index"] == scenario["sdc_track_index"]
    assert found["track_id"].tolist() == [track["id"] for track in scenario["tracks"]]
    assert found["track_type"].tolist() == [track["object_type"] for track in scenario["tracks"]]
    assert (found["track_position"] == from_states(scenario, "center_x", "center_y", "center_z")).all()
    for name, entries in {
        "track_size": ("length", "width", "height"),
        "track_velocity": ("velocity_x", "velocity_y"),
    }.items():
        assert found[name].dtype == np.float32
        assert (found[name] == from_states(scenario, *entries).astype(np.float32)).all()
    assert (found["track_heading"] == from_states(scenario, "heading")[..., 0].astype(np.float32)).all()
    assert (found["track_valid"] == from_states(scenario, "valid")[..., 0]).all()
    assert not found["track_valid"].all()
    tracks = range(len(scenario["tracks"]))
    difficulty = {entry["track_index"]: entry.get("difficulty", 0) for entry in scenario["tracks_to_predict"]}
    assert found["track_to_predict"].tolist() == [i in difficulty for i in tracks]
    assert found["track_difficulty"].tolist() == [difficulty.get(i, 0) for i in tracks]
    assert found["track_of_interest"].tolist() == [i == 0 for i in tracks]


@pytest.mark.parametrize("size", [20, 2])
def test_map_features_are_cut_into_polylines(path, size):
    source = TFRecord(path, WaymoScenario(["map"], points=size))
    assert source[0]["map_points"].shape == (0, size, 3)
    found, expected = source[1], list(polylines(GOLDEN[1], size))
    assert found["map_points"].shape == (len(expected), size, 3)
    for row, (kind, type_, identifier, limit, points) in enumerate(expected):
        assert (found["map_kind"][row], found["map_type"][row], found["map_id"][row]) == (kind, type_, identifier)
        assert found["map_speed_limit"][row] == limit
        assert found["map_points"][row][found["map_valid"][row]].tolist() == points
    assert "track_id" not in found


@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_signals_are_listed_by_lane(path, index):
    found = TFRecord(path, WaymoScenario(["signals"]))[index]
    assert found["signal_lane"].tolist() == [11, 12]
    for step, states in enumerate(GOLDEN[index]["dynamic_map_states"]):
        expected = {int(state["lane"]): state["state"] for state in states.get("lane_states", [])}
        valid = found["signal_valid"][:, step]
        assert dict(zip(found["signal_lane"][valid], found["signal_state"][valid, step], strict=True)) == expected
        for state in states.get("lane_states", []):
            row = found["signal_lane"].tolist().index(int(state["lane"]))
            assert found["signal_point"][row].tolist() == [state["stop_point"][axis] for axis in "xyz"]


def test_scenarios_of_different_sizes_are_padded(path):
    padded = engine.Padded(
        TFRecord(path, WaymoScenario(points=8)),
        fields=WaymoScenario.FIELDS,
        lengths={"tracks": 6, "map": 16, "signals": 4},
    )
    rows = Batches(padded, 2, 0, False)[0].examples
    assert rows["track_position"].shape == (2, 6, 5, 3) and rows["track_position"].dtype == np.float32
    assert rows["map_points"].shape == (2, 16, 8, 3)
    assert rows["mask"]["tracks"].sum(axis=1).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"", "no tracks or no timestamps: it is no Scenario of Waymo"),
        (field(1, 0.5) + field(2, field(1, 3)), "track 0 has 0 states, the scenario has 1 timestamps"),
        (
            field(1, 0.5) + field(2, field(3, field(11, 1))) + field(11, field(1, 7)),
            "tracks_to_predict names track 7, the scenario has 1 tracks",
        ),
        (
            field(1, 0.5) + field(2, field(3, b"")) + field(7, b"") + field(7, b""),
            "2 dynamic map states, the scenario has 1 timestamps",
        ),
    ],
)
def test_inconsistent_scenario_is_a_data_error(record, error):
    with pytest.raises(DataError, match=error):
        WaymoScenario()(record)


def test_unknown_part_is_refused():
    with pytest.raises(DataError, match=r"parts: found 'track', allowed: tracks, map, signals. Did you mean tracks"):
        WaymoScenario(["track"])
    with pytest.raises(DataError, match="points = 0: allowed are 1 and more"):
        WaymoScenario(points=0)


RECORD = read_tf_record(FIXTURES / "scenarios.tfrecord")[1]


@examples(150)
@given(st.lists(st.tuples(st.integers(0, len(RECORD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 50))
def test_damaged_scenario_is_read_or_raises_a_data_error(changes, cut):
    record = bytearray(RECORD)
    for position, value in changes:
        record[position] = value
    try:
        WaymoScenario()(bytes(record[: len(record) - cut]))
    except DataError as error:
        assert str(error)
