"""Examples of motion forecasting: frames of the targets, masks, and entries for the metrics."""

from typing import Any

import jax
import numpy as np
import pytest

from convoy_zoo.models.traffic.motion_examples import AHEAD, FAST, SCALE, example, present
from convoy_zoo.models.traffic.motion_scenes import argoverse2, waymo
from tests.models.traffic.motion_files import sources

SHIFT = np.array([400, -70])  # metres
FORMS = {"argoverse2": argoverse2, "waymo": waymo}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    return sources(tmp_path_factory.mktemp("motion"))


def turned(points, angle):
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


@pytest.mark.parametrize("name", FORMS)
def test_scenes_of_targets_do_not_depend_on_the_frame_of_the_dataset(found, name):
    scenario, angle = FORMS[name](found[name].source[0]), 2.0
    moved = FORMS[name](found[name].source[0])
    moved.heading = moved.heading + np.float32(angle)
    moved.velocity = turned(moved.velocity, angle)
    moved.position, moved.lines = (turned(x, angle) + SHIFT for x in (moved.position, moved.lines))
    one, other = (example(each, found[name].sizes) for each in (scenario, moved))
    for entry in ("agents", "lines", "future", "velocity"):
        np.testing.assert_allclose(other[entry], one[entry], atol=2e-4, err_msg=entry)
    np.testing.assert_allclose(other["origin"], turned(one["origin"], angle) + SHIFT, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_the_target_comes_first_at_the_origin_of_its_frame(found, name):
    scenario, sizes = FORMS[name](found[name].source[0]), found[name].sizes
    one = example(scenario, sizes)
    chosen = present(scenario)[: sizes.targets]
    assert one["target"].tolist() == [True, True, False] and len(chosen) == 2
    for row, target in enumerate(chosen):
        last = one["agents"][row, 0, -1]
        np.testing.assert_allclose(last[:4], [0, 0, 1, 0], atol=1e-6)
        np.testing.assert_allclose(last[4:6] * FAST, one["velocity"][row], atol=1e-5)
        assert np.hypot(*one["velocity"][row]) == pytest.approx(
            np.hypot(*scenario.velocity[target, scenario.current]), rel=1e-5
        )
        x, y, turn = one["frame"][row]
        back = turned(one["future"][row], turn) + [x, y] + one["origin"]
        wanted = scenario.position[target, scenario.current + 1 :]
        np.testing.assert_allclose(back[: len(wanted)], wanted, atol=1e-4)
        near = np.hypot(*one["agents"][row, :, -1, :2].T)[one["agents_valid"][row, :, -1]]
        assert (np.diff(near) >= 0).all()


@pytest.mark.parametrize("name", FORMS)
def test_lines_are_the_nearest_to_where_the_target_will_be(found, name):
    scenario, sizes = FORMS[name](found[name].source[0]), found[name].sizes
    one = example(scenario, sizes)
    target, now = present(scenario)[0], scenario.current
    ahead = scenario.position[target, now] + AHEAD * scenario.velocity[target, now]
    far = np.where(scenario.line_valid, np.hypot(*np.moveaxis(scenario.lines - ahead, -1, 0)), np.inf).min(-1)
    kept = one["lines"][0, ..., :2] * SCALE - AHEAD * one["velocity"][0]
    away = np.where(one["lines_valid"][0], np.hypot(*np.moveaxis(kept, -1, 0)), np.inf).min(-1)
    np.testing.assert_allclose(away, np.sort(far)[: sizes.lines], atol=1e-3)
    assert not one["lines"][~one["lines_valid"]].any() and not one["agents"][~one["agents_valid"]].any()


def test_lights_of_lanes_are_features_of_their_points(found):
    record = found["waymo"].source[0]
    scenario = waymo(record)
    seen = dict(zip(record["signal_lane"].tolist(), record["signal_state"][:, 10].tolist(), strict=True))
    for number, kind, light in zip(record["map_id"], record["map_kind"], scenario.line_light, strict=True):
        assert light == ({4: 1, 6: 3}[seen[number]] if kind == 3 and number in seen else 0)
    assert (scenario.line_light > 0).any()


def test_entries_for_the_metrics_are_true_states(found):
    scenario, sizes = waymo(found["waymo"].source[0]), found["waymo"].sizes
    one, now = example(scenario, sizes), scenario.current
    target = present(scenario)[1]
    place = one["states"][1, :, :2] + one["origin"]
    np.testing.assert_allclose(place, scenario.position[target, now:], atol=1e-4)
    assert one["states_valid"].sum(1).tolist() == [81, 81, 0] and one["own"][2] == -1
    np.testing.assert_allclose(one["boxes"][one["own"][1], :, :2], one["states"][1, 5::5, :2], atol=1e-6)
    assert (one["boxes_valid"].sum(1) > 0).all() and one["boxes"].shape == (5, 16, 5)


def test_a_target_that_is_missing_now_is_left_out(found):
    scenario = waymo(found["waymo"].source[0])
    scenario.valid[scenario.targets[0], scenario.current] = False
    one = example(scenario, found["waymo"].sizes)
    assert one["target"].tolist() == [True, False, False]
    none = waymo(found["waymo"].source[0])
    none.valid[:, none.current] = False
    empty = example(none, found["waymo"].sizes)
    assert not empty["target"].any() and not empty["agents_valid"].any()
    assert {x.shape for x in jax.tree.leaves(empty)} == {x.shape for x in jax.tree.leaves(one)}
