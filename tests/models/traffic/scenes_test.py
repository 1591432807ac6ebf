"""Simulated traffic: scenes and maps of a recording made by hand, and of SUMO where it is installed."""

import importlib.util
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from convoy_zoo.models.traffic import scenes as traffic
from convoy_zoo.models.traffic import simulation
from convoy_zoo.models.traffic.scenes import CURRENT, FIELDS, MAP_RADIUS, RADIUS, STEPS, Traffic, extract, scenes
from convoy_zoo.models.traffic.simulation import DURATION, PIECE, POINTS, RATE, WARM_UP, Recording, cut, reachable
from engine import DataError, Padded
from tests.models.traffic.recording import recording

needs_sumo = pytest.mark.skipif(
    importlib.util.find_spec("sumo") is None, reason="SUMO is not installed: pip install -e '.[sim]'"
)


def test_scene_has_the_agents_around_its_focal_agent():
    whole = recording(agents=30)
    for seed in range(20):
        scene = extract(whole, np.random.default_rng(seed))
        position, valid = scene["track_position"], scene["track_valid"]
        assert position.shape[1:] == (STEPS, 2) and position.dtype == np.float32
        assert not position[0, CURRENT].any() and valid[0].all()
        distance = np.hypot(*position[:, CURRENT].T)
        assert (np.diff(distance) >= 0).all() and distance.max() < RADIUS and valid[:, CURRENT].all()
        assert not position[~valid].any()
        chosen = scene["track_to_predict"]
        assert chosen[0] and valid[chosen].all() and chosen.sum() == min(traffic.TARGETS, valid.all(1).sum())
        present = ~np.isnan(whole.state[..., 0])
        steps = [
            step
            for step in range(whole.state.shape[1] - STEPS + 1)
            if any(
                np.allclose(whole.state[n, step + CURRENT, :2], scene["origin"])
                for n in np.flatnonzero(present[:, step + CURRENT])
            )
        ]
        near = [np.hypot(*(whole.state[:, step + CURRENT, :2] - scene["origin"]).T) < RADIUS for step in steps]
        assert len(position) in [found.sum() for found in near]


def test_map_of_a_scene_keeps_its_links():
    whole = recording(agents=12)
    scene = extract(whole, np.random.default_rng(3))
    points = scene["map_points"] + scene["origin"]
    own = [int(np.flatnonzero((np.abs(whole.points - piece) < 1e-3).all((1, 2)))[0]) for piece in points]
    near = np.hypot(*(whole.points - scene["origin"]).transpose(2, 0, 1)).min(1) < MAP_RADIUS
    assert own == np.flatnonzero(near).tolist()
    for number, piece in enumerate(own):
        wanted = [other for other in whole.next[piece] if other >= 0 and near[other]]
        assert [own[other] for other in scene["map_next"][number] if other >= 0] == wanted
    assert [own[lane] for lane in scene["signal_lane"]] == [x for x in whole.signal_piece if near[x]]
    np.testing.assert_array_equal(scene["signal_point"], scene["map_points"][scene["signal_lane"], 0])
    assert scene["signal_state"].shape == (len(scene["signal_lane"]), STEPS)


def test_pieces_of_a_lane_have_equal_lengths_and_keep_its_ends():
    line = np.array([[0, 0], [70, 0], [70, 25.0]])
    pieces = cut(line)
    assert len(pieces) == 4 and all(piece.shape == (POINTS, 2) for piece in pieces)
    np.testing.assert_allclose(pieces[0][0], line[0])
    np.testing.assert_allclose(pieces[-1][-1], line[-1])
    for one, two in itertools.pairwise(pieces):
        np.testing.assert_array_equal(one[-1], two[0])
    assert np.hypot(*np.diff(pieces[0], axis=0).T).sum() == pytest.approx(95 / 4) and PIECE >= 95 / 4


def test_trips_end_where_their_road_leads():
    following = {"a": ["b", "c"], "b": ["a"], "c": ["exit"], "other": ["a"]}
    assert reachable("a", following) == ["b", "c", "exit"]
    assert reachable("exit", following) == []


def test_lights_have_the_state_of_the_last_switch(tmp_path):
    network = ElementTree.fromstring(
        '<net><connection from="a" fromLane="0" to="b" toLane="0" via=":x_0" tl="t" linkIndex="1"/>'
        '<connection from="c" fromLane="0" to="d" toLane="0"/></net>'
    )
    path = tmp_path / "lights.xml"
    states = [(0, "Gr"), (WARM_UP + 1, "yg"), (WARM_UP + 2.25, "rY")]
    lines = [f'<tlsState time="{time}" id="t" state="{state}"/>' for time, state in states]
    path.write_text(f"<tlsStates>{''.join(lines)}</tlsStates>")
    found = simulation._lights(path, network, {":x_0": 7, "d_0": 8})
    assert found["signal_piece"].tolist() == [7]
    assert found["signal_state"][0, :6].tolist() == [0, 0, 2, 2, 2, 1]
    assert found["signal_state"].shape == (1, (DURATION - WARM_UP) * RATE)


def test_files_are_written_once(tmp_path, monkeypatch):
    """Two callers at the same time get the same files, and a later one simulates nothing."""
    simulated = []

    def simulate(seed: tuple[int, ...]) -> Recording:
        simulated.append(seed)
        return recording(agents=12, seed=seed)

    monkeypatch.setattr(traffic, "simulate", simulate)
    monkeypatch.setattr(traffic, "sumo_folder", Path)
    traffic._simulated.cache_clear()
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: scenes("test", str(tmp_path), networks=1, count=6), range(2))
    assert len(first) == len(second) == 6 and first.paths == second.paths and len(simulated) == 1
    padded = Padded(first, {"tracks": 48, "map": 64, "signals": 16}, FIELDS)
    assert padded[5]["mask"]["tracks"].sum() == len(first[5]["track_type"])
    path = Path(first.paths[0])
    before = path.read_bytes()
    path.unlink()
    traffic._simulated.cache_clear()
    assert len(scenes("test", str(tmp_path), networks=1, count=6)) == 6
    assert path.read_bytes() == before


def test_missing_sumo_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sumo", None)
    with pytest.raises(DataError, match=r"eclipse-sumo, which is not installed. .*: pip install -e '.\[sim\]'"):
        scenes("test", str(tmp_path))


def test_unknown_split_is_an_error():
    with pytest.raises(DataError, match="'val' is unknown: allowed are train, validation, test"):
        Traffic("val")


@pytest.mark.parametrize("option", ["networks", "count"])
def test_a_number_below_one_is_an_error(option):
    with pytest.raises(DataError, match=f"{option} = -1: allowed is a whole number from 1 on"):
        Traffic("test", **{option: -1})


def test_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic, "sumo_folder", Path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match="file/traffic: cannot write simulated scenes: Not a directory"):
        scenes("test", str(file / "traffic"))


@needs_sumo
def test_simulation_depends_on_its_seed_only(monkeypatch, tmp_path):
    monkeypatch.setattr(simulation, "DURATION", 110)
    found = [simulation.simulate(seed) for seed in ((0, 0, 3), (0, 0, 3), (0, 0, 8))]
    same = [
        all(np.array_equal(vars(found[0])[name], x, equal_nan=x.dtype.kind == "f") for name, x in vars(other).items())
        for other in found[1:]
    ]
    assert same == [True, False]
    one = found[0]
    assert one.state.shape[1] == 100 and len(one.type) > 30 and set(one.kind) == {0, 1, 2, 3}
    moving = one.state[..., 3] > 3
    step, ahead = np.diff(one.state[..., :2], axis=1), one.state[:, 1:, 2]
    along = step[..., 0] * np.cos(ahead) + step[..., 1] * np.sin(ahead)
    cars = moving[:, 1:] & moving[:, :-1] & (one.type < 3)[:, None] & ~np.isnan(along)
    assert np.median(np.abs(along - one.state[:, 1:, 3] / RATE)[cars]) < 0.3  # speed and heading fit the positions
    centres = one.points[one.kind < 2].reshape(-1, 2)
    seen = one.state[one.type < 3][..., :2]
    seen = seen[~np.isnan(seen[..., 0])][::50]
    assert np.quantile(np.linalg.norm(seen[:, None] - centres, axis=-1).min(1), 0.95) < 6
    assert len(one.signal_piece) and set(np.unique(one.signal_state)) == {0, 1, 2}
