"""Simulated crossings: agents drive on lanes at the speeds that their states name, and wait at red lights."""

import numpy as np
import pytest

from convoy_zoo.models.miniatures.crossings import BOX, RATE, STEPS, STOP, TYPES, Crossing, crossing

REACTION = 15  # steps


@pytest.fixture(scope="module")
def scenes() -> list[Crossing]:
    return [crossing((5, number)) for number in range(6)]


def test_a_scene_depends_on_its_seed_only(scenes):
    again = crossing((5, 1))
    np.testing.assert_array_equal(again.states, scenes[1].states)
    np.testing.assert_array_equal(again.valid, scenes[1].valid)
    assert not np.array_equal(scenes[0].states[0], scenes[1].states[0])


def test_positions_move_by_the_velocities(scenes):
    for scene in scenes:
        moved = np.diff(scene.states[..., :2], axis=1) * RATE
        mean = (scene.states[:, 1:, 3:] + scene.states[:, :-1, 3:]) / 2
        assert np.abs(moved - mean).max() < 0.6  # the rest is acceleration and the curves' chords
        along = np.stack([np.cos(scene.states[..., 2]), np.sin(scene.states[..., 2])], -1)
        speed = (scene.states[..., 3:] * along).sum(-1)
        assert speed.min() > -1e-9 and 5 < speed.max() < 13.1  # metres per second


def test_vehicles_are_on_lanes_until_they_leave_the_map(scenes):
    for scene in scenes:
        points = np.concatenate([lane.points for lane in scene.lanes])
        centre = scene.area.mean(0)
        for states in scene.states[scene.types == TYPES.index("vehicle")]:
            near = np.hypot(*(states[:, :2] - centre).T) < 80
            away = np.hypot(*(states[near, None, :2] - points).T).min(0)
            assert near.any() and away.max() < 1.5


def test_nobody_enters_on_red(scenes):
    crossed = 0
    for scene in scenes:
        into = [lane for lane in scene.lanes if lane.arm >= 0 and not lane.junction]
        for states in scene.states[np.isin(scene.types, (0, 1, 2, 3))]:
            lane = min(into, key=lambda lane: np.hypot(*(lane.points - states[0, :2]).T).min())
            ahead = (states[:, :2] - lane.points[-1]) @ (lane.points[-1] - lane.points[-2])
            for step in np.flatnonzero((ahead[1:] > 0) & (ahead[:-1] <= 0)):
                crossed += 1
                seen = scene.lights[lane.arm, max(step - REACTION, 0) : step + 1]
                assert (seen != STOP).any()  # a vehicle that is too near to stop drives on
    assert crossed > 5


def test_tracks_to_predict_are_known_at_every_step(scenes):
    for scene in scenes:
        assert scene.predicted == 4
        assert scene.valid[:4].all() and scene.valid[-1].all() and not scene.valid.all()
        assert scene.states.shape == (len(scene.types), STEPS, 5)
        assert np.hypot(*(scene.states[0, -1, :2] - scene.states[0, STEPS // 3, :2])) > BOX
