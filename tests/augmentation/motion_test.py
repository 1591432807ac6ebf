import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.augmentation import Camera, Points, Scene
from engine.augmentation.motion import Motion, move, wrapped
from engine.base.errors import DataError
from engine.plot import project
from tests.augmentation.scenes import SCENE, WIDTH, assert_close, assert_same, example, flat, pose, window
from tests.properties import examples

MOTIONS = {
    "rotation": Motion.rotation(0.7),
    "half turn": Motion.flip(True, True),
    "flip x": Motion.flip(True, False),
    "flip y": Motion.flip(False, True),
    "scale": Motion(scale=1.1),
    "shift": Motion(shift=np.array([1.0, -2.0, 0.5])),
}
ANY = pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
STATES = st.builds(
    lambda angle, flip, scale: Motion(Motion.rotation(angle).turn @ Motion.flip(flip, False).turn, scale),
    st.floats(-7, 7),
    st.booleans(),
    st.floats(0.5, 2),
)


def reference(motion, x, y, z=0.0):
    """Returns a position after a motion of MOTIONS, by formulas of single numbers."""
    name = next(name for name, other in MOTIONS.items() if other is motion)
    if name == "rotation":
        return math.cos(0.7) * x - math.sin(0.7) * y, math.sin(0.7) * x + math.cos(0.7) * y, z
    if name == "scale":
        return 1.1 * x, 1.1 * y, 1.1 * z
    if name == "shift":
        return x + 1, y - 2, z + 0.5
    return (x if name == "flip y" else -x), (y if name == "flip x" else -y), z


@ANY
def test_positions_velocities_and_angles_agree_with_a_plain_reference(motion):
    before, after = example(), move(example(), SCENE, motion, "test")
    origin = np.array(reference(motion, 0, 0, 0))
    for old, new in zip(before["lidar"], after["lidar"], strict=True):
        assert new[:3] == pytest.approx(reference(motion, *old[:3].tolist()), abs=2e-5)
        assert new[4:6] == pytest.approx((reference(motion, *old[4:6].tolist()) - origin)[:2], abs=2e-5)
        assert new[3] == old[3]
    for old, new, valid in zip(before["boxes"], after["boxes"], before["boxes_valid"], strict=True):
        if not valid:
            np.testing.assert_array_equal(new, old)
            continue
        assert new[:3] == pytest.approx(reference(motion, *old[:3].tolist()), abs=2e-5)
        ahead = np.array(reference(motion, math.cos(old[6]), math.sin(old[6])))[:2] - origin[:2]
        assert new[6] == pytest.approx(math.atan2(ahead[1], ahead[0]), abs=1e-5)
        assert new[3:6] == pytest.approx(old[3:6] * motion.scale)
    tracks, valid = after["track"], before["track"]["valid"]
    moved = [reference(motion, *xy) for xy in before["track"]["position"][valid].tolist()]
    np.testing.assert_allclose(tracks["position"][valid], np.array(moved)[:, :2])
    np.testing.assert_array_equal(tracks["position"][~valid], before["track"]["position"][~valid])
    valid = before["map"]["valid"]
    moved = [reference(motion, *xyz) for xyz in before["map"]["points"][valid].tolist()]
    np.testing.assert_allclose(after["map"]["points"][valid], moved, atol=2e-5)
    np.testing.assert_allclose(
        np.linalg.norm(after["map"]["direction"], axis=-1),
        np.linalg.norm(before["map"]["direction"], axis=-1),
        rtol=1e-5,
    )


@ANY
def test_radar_in_its_own_frame_agrees_with_points_in_the_ego_frame(motion):
    before = example()
    after = move(before, SCENE, motion, "test")
    to_ego = before["calibration"]["radar"]["to_ego"].astype(np.float64)
    ego = before["radar"][:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    moved = after["radar"][:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    np.testing.assert_allclose(moved, [reference(motion, *point) for point in ego.tolist()], atol=1e-4)
    assert after["calibration"]["radar"] is before["calibration"]["radar"]


def test_velocities_in_the_frame_of_a_level_sensor_follow():
    before = example()
    before["calibration"]["radar"]["to_ego"] = pose(np.random.default_rng(3), yaw=2.0)
    turn = before["calibration"]["radar"]["to_ego"][:2, :2].astype(np.float64)
    for motion in MOTIONS.values():
        after = move(before, SCENE, motion, "test")
        old, new = before["radar"][:, 3:] @ turn.T, after["radar"][:, 3:] @ turn.T
        np.testing.assert_allclose(new, motion.scale * old @ motion.turn[:2, :2].T, rtol=1e-5, atol=1e-4)


@ANY
def test_points_in_a_box_stay_in_the_box(motion):
    before = example(boxes=40)
    pose = before["box_to_ego"].astype(np.float64)
    inside = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 30, 3)) * before["box_size"][:, None]
    before["lidar"] = (inside @ np.moveaxis(pose[:, :3, :3], 1, 2) + pose[:, None, :3, 3]).reshape(-1, 3)
    before["lidar"] = np.pad(before["lidar"], ((0, 0), (0, 3)))
    after = move(before, SCENE, motion, "test")
    pose = after["box_to_ego"].astype(np.float64)
    own = (after["lidar"][:, :3].reshape(40, 30, 3) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    assert (np.abs(own) <= after["box_size"][:, None] / 2 + 1e-4).all()
    np.testing.assert_allclose(np.linalg.det(pose[:, :3, :3]), 1, atol=1e-5)  # a rigid pose, also of a mirrored scene


@pytest.mark.parametrize("pixels", ["centers", "edges"])
@pytest.mark.parametrize("stored", ["to_ego", "from_ego"])
@ANY
def test_points_are_seen_at_the_same_pixels(motion, stored, pixels):
    before = example()
    poses = before["calibration"]["cameras"]["to_ego"]
    before["calibration"]["cameras"]["from_ego"] = np.linalg.inv(poses.astype(np.float64)).astype(np.float32)
    pose_entry: Any = {stored: f"calibration/cameras/{stored}"}
    camera = Camera("images", "calibration/cameras/intrinsics", pixels=pixels, **pose_entry)
    after = move(before, Scene(points="lidar", cameras=camera), motion, "test")

    def seen(found, camera):
        calibration = found["calibration"]["cameras"]
        pose = calibration[stored][camera].astype(np.float64)
        to_camera = np.linalg.inv(pose) if stored == "to_ego" else pose
        points = found["lidar"][:, :3] @ to_camera[:3, :3].T + to_camera[:3, 3]
        assert np.linalg.det(to_camera[:3, :3]) == pytest.approx(1, abs=1e-4)
        return project(points, calibration["intrinsics"][camera]), points[:, 2]

    for camera in range(2):
        (old, depth), (new, new_depth) = seen(before, camera), seen(after, camera)
        ahead = depth > 1
        assert ahead.sum() > 5
        if motion.mirrors:
            old[:, 0] = (WIDTH - 1 if pixels == "centers" else WIDTH) - old[:, 0]
        np.testing.assert_allclose(new[ahead], old[ahead], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(new_depth, depth * motion.scale, rtol=1e-3, atol=1e-3)
    same = before["images"] if not motion.mirrors else before["images"][:, :, ::-1]
    np.testing.assert_array_equal(after["images"], same)


@ANY
def test_mirrored_labels_of_pixels_follow_their_image(motion):
    before, after = example(), move(example(), SCENE, motion, "test")
    np.testing.assert_array_equal(after["depth"], before["depth"][..., ::-1] if motion.mirrors else before["depth"])


def test_motion_from_frame_to_frame_is_that_of_the_moved_points():
    frames = window(2)
    for motion in MOTIONS.values():
        after = move(frames, SCENE, motion, "test")
        first, second = (np.linalg.inv(after["ego_to_world"][1]) @ after["ego_to_world"][0], frames["ego_to_world"])
        between = np.linalg.inv(second[1]) @ second[0]  # from the first to the second ego frame
        point = np.array([3.0, 4.0, 1.0, 1.0])
        np.testing.assert_allclose(first @ motion.matrix @ point, motion.matrix @ between @ point, atol=1e-6)


@ANY
def test_window_of_frames_is_moved_like_each_frame(motion):
    together = move(window(3), SCENE, motion, "test")
    for number in range(3):
        alone = flat(move(example(number), SCENE, motion, "test"))
        for path, value in flat(together).items():
            np.testing.assert_array_equal(value[number], alone[path], err_msg=path)


@ANY
def test_inverse_restores_the_example_and_nothing_is_modified(motion):
    before, kept = example(), example()
    after = move(before, SCENE, motion, "test")
    assert_same(before, kept)
    assert_close(move(after, SCENE, motion.inverse, "test"), before)
    assert after["label"] is before["label"] and after["name"] is before["name"]


@given(STATES)
@examples(40)
def test_distances_are_preserved_up_to_the_scale(motion):
    before, after = example()["lidar"][:, :3], move(example(), SCENE, motion, "test")["lidar"][:, :3]
    old, new = (np.linalg.norm(x[:, None] - x, axis=-1) for x in (before, after))
    np.testing.assert_allclose(new, old * motion.scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_are_kept(dtype):
    points = {"lidar": np.random.default_rng(0).normal(size=(9, 3)).astype(dtype)}
    after = move(points, Scene(points="lidar"), MOTIONS["rotation"], "test")["lidar"]
    assert after.dtype == dtype
    expected = points["lidar"].astype(float) @ MOTIONS["rotation"].turn.T
    np.testing.assert_allclose(after, expected, atol=4 * np.finfo(dtype).eps)


@given(st.floats(-50, 50))
@examples(50)
def test_wrapped_angles_are_from_minus_pi_to_below_pi(angle):
    found = wrapped(np.array([angle]))
    assert -np.pi <= found[0] < np.pi
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * angle), atol=1e-9)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("lidar", np.zeros((4, 3), np.float32), r"lidar is float32\[4, 3\], allowed is .* \[..., points, 6 or more\]"),
        ("lidar", np.zeros((4, 6), np.int32), r"lidar is int32\[4, 6\]"),
        ("boxes_valid", np.ones(4, bool), r"boxes_valid is bool\[4\], allowed is bool\[5\]"),
        ("center", np.zeros((5, 4), np.float32), r"center is float32\[5, 4\]"),
        ("yaw", [0.0], "yaw is a list"),
    ],
)
def test_other_shapes_are_refused(path, value, text):
    with pytest.raises(DataError, match=text):
        move({**example(), path: value}, SCENE, MOTIONS["rotation"], "test")


def test_image_without_colours_cannot_be_mirrored():
    grey = {**example(), "images": np.zeros((2, 4, 5), np.uint8)}
    with pytest.raises(DataError, match=r"images is uint8\[2, 4, 5\], allowed is \[..., height, width, 3\]"):
        move(grey, SCENE, MOTIONS["flip y"], "test")


def test_labels_of_pixels_of_another_shape_cannot_be_mirrored():
    before = example()
    before["depth"] = np.stack([before["depth"]] * 2, -1)  # mirrored, its two values would change places
    with pytest.raises(DataError, match=r"test: depth is float32\[2, 24, 40, 2\], but its image has 24 x 40 pixels"):
        move(before, SCENE, MOTIONS["flip y"], "test")


def test_points_of_two_coordinates_stay_in_the_plane():
    before = {"map": np.random.default_rng(0).normal(size=(9, 4))}
    after = move(before, Scene(points=Points("map", coordinates=2)), MOTIONS["scale"], "test")["map"]
    np.testing.assert_allclose(after, before["map"] * [1.1, 1.1, 1, 1])
