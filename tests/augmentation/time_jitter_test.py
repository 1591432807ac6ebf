import math

import numpy as np
import pytest

from engine.augmentation import Boxes, Scene, TimeJitter, Tracks
from engine.base.errors import DataError
from tests.augmentation.scenes import SCENE, example, flat, window

NO_SHIFT = np.zeros(1)
ALL = TimeJitter(0.3, parts=("tracks", "times"), scene=SCENE)


def interpolated(values, at):
    """Returns a value between two steps of a list, held at its ends, by formulas of single numbers."""
    at = min(max(at, 0), len(values) - 1)
    first = min(math.floor(at), len(values) - 2)
    return values[first] + (at - first) * (values[first + 1] - values[first])


@pytest.mark.parametrize("shift", [0.0, 0.04, -0.13, 0.25, 0.1, -2.0])
def test_tracks_agree_with_plain_interpolation(shift):
    before = example()
    after = ALL.apply(before, np.array([shift]))["track"]
    position, valid = before["track"]["position"], before["track"]["valid"]
    for agent, step in np.ndindex(3, 11):
        at = step + shift / 0.1
        first, second = math.floor(at), math.floor(at) + (at > math.floor(at))
        known = first >= 0 and second < 11 and bool(valid[agent, first] and valid[agent, second])
        assert after["valid"][agent, step] == known
        if not known:
            np.testing.assert_array_equal(after["position"][agent, step], position[agent, step])
            continue
        for column in range(2):
            expected = interpolated(position[agent, :, column].tolist(), at)
            assert after["position"][agent, step, column] == pytest.approx(expected, abs=1e-9)
        headings = np.unwrap(before["track"]["heading"][agent, [first, second]].astype(float))
        expected = headings[0] + (at - first) * (headings[1] - headings[0])
        assert math.cos(after["heading"][agent, step] - expected) == pytest.approx(1, abs=1e-6)
    assert {path: leaf.dtype for path, leaf in flat(after).items()} == {
        path: leaf.dtype for path, leaf in flat(before["track"]).items()
    }


def test_shift_of_zero_changes_no_bits():
    before = example()
    after = ALL.apply(before, np.array([0.0]))["track"]
    for name in ("position", "velocity", "valid"):
        np.testing.assert_array_equal(after[name], before["track"][name])


def test_tracks_without_a_mask_stay_at_their_ends():
    tracks = {"x": np.arange(10.0).reshape(1, 5, 2)}
    step = TimeJitter(1, parts=("tracks",), scene=Scene(tracks=Tracks("x", step_s=0.5)))
    assert step.apply(tracks, np.array([0.75]))["x"][0, :, 0].tolist() == [3, 5, 7, 8, 8]
    assert step.apply(tracks, np.array([-0.75]))["x"][0, :, 0].tolist() == [0, 0, 1, 3, 5]


def test_each_agent_has_its_own_shift():
    step = TimeJitter(0.3, parts=("tracks",), each_agent=True, scene=SCENE)
    shifts = step.draw(np.random.default_rng(0), example())
    assert shifts.shape == (3,) and len(set(shifts)) == 3
    after = step.apply(example(), shifts)["track"]["position"]
    for agent, shift in enumerate(shifts):
        alone = ALL.apply(example(), np.array([shift]))["track"]["position"]
        np.testing.assert_array_equal(after[agent], alone[agent])


def test_boxes_move_by_their_velocity():
    step = TimeJitter(0.3, parts=("boxes",), scene=Scene(boxes=[SCENE.boxes[0], SCENE.boxes[2]]))
    before = example()
    after = step.apply(before, np.array([0.2]))
    moved = np.where(before["boxes_valid"][:, None], before["boxes"][:, 7:9] * 0.2, 0)
    np.testing.assert_allclose(after["boxes"][:, :2], before["boxes"][:, :2] + moved, rtol=1e-5)
    np.testing.assert_array_equal(after["boxes"][:, 2:], before["boxes"][:, 2:])
    np.testing.assert_allclose(after["center"][:, :2], before["center"][:, :2] + before["velocity"] * 0.2, rtol=1e-5)
    posed = TimeJitter(parts=("boxes",), scene=Scene(boxes=Boxes(pose="box_to_ego", velocity="velocity")))
    after = posed.apply(before, np.array([0.2]))["box_to_ego"]
    np.testing.assert_allclose(after[:, :2, 3], before["box_to_ego"][:, :2, 3] + before["velocity"] * 0.2, rtol=1e-4)
    np.testing.assert_array_equal(after[:, :, :3], before["box_to_ego"][:, :, :3])


def test_ages_and_times_become_larger():
    scene = Scene(points=dict(entry="lidar", age=5), times=("time_s",))
    step, before = TimeJitter(0.3, parts=("ages", "times"), scene=scene), example()
    after = step.apply(before, np.array([0.25]))
    np.testing.assert_allclose(after["lidar"][:, 5], before["lidar"][:, 5] + 0.25, rtol=1e-5)
    np.testing.assert_array_equal(after["lidar"][:, :5], before["lidar"][:, :5])
    assert after["time_s"] == pytest.approx(before["time_s"] + 0.25) and after["time_s"].dtype == np.float32


def test_window_has_one_draw():
    shift = ALL.draw(np.random.default_rng(0), window(3))
    assert shift.shape == (1,) and -0.3 <= shift[0] <= 0.3
    together = flat(ALL.apply(window(3), shift))
    for number in range(3):
        for path, value in flat(ALL.apply(example(number), shift)).items():
            np.testing.assert_array_equal(together[path][number], value, err_msg=path)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TimeJitter((0.2, 0.1)), r"TimeJitter: seconds = \(0.2, 0.1\)"),
        (lambda: TimeJitter(parts=("track",)), "TimeJitter: parts has 'track'.*Did you mean tracks"),
        (lambda: TimeJitter(each_agent=True), r"each_agent needs parts = \('tracks',\)"),
        (
            lambda: TimeJitter(parts=("boxes",), scene=Scene(boxes=Boxes(center="center"))).apply(
                example(), np.zeros(1)
            ),
            "boxes have no velocity",
        ),
        (
            lambda: TimeJitter(parts=("times",), scene=Scene(times=("label",))).apply(example(), NO_SHIFT),
            r"label is int32\[5\], allowed are seconds",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, text):
    with pytest.raises(DataError, match=text):
        make()
