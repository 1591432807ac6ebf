"""Cameras of nuScenes: the level frame, masks, and a memory that moves with the vehicle."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.miniatures import nuscenes as miniature
from convoy_zoo.models.street.bev import Backbone
from convoy_zoo.models.street.centers import Space
from convoy_zoo.models.street.nuscenes_cameras import CAMERAS, CameraSamples, NuScenesCameras, drives, moved, samples
from engine import TaskError
from engine.readers import NuScenes
from tests.models.dataset_subjects import camera_drives

SPACE = Space((-4.0, -4.0, -3.0), (4.0, 4.0, 5.0), (8, 8))
RUN = jax.jit(moved, static_argnames="space")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("nuscenes")
    miniature.write(path, scenes=(1, 0), samples=3, sweeps=0)
    return str(path)


def test_boxes_of_the_level_frame_are_at_the_same_pixels_as_those_of_the_ego_frame(folder):
    source = NuScenes(folder, "v1.0-mini", CAMERAS, detection=True)
    part = NuScenes(folder, "v1.0-mini", CAMERAS, detection=True, size=(48, 128), crop=(10, 0, 38, 128))
    found, raw = CameraSamples(part)[1], source[1]
    assert found["images"].shape == (6, 38, 128, 3) and (found["images"][0] == raw["CAM_FRONT"][10:]).all()
    kept = raw["box_points"] > 0
    assert kept.sum() == len(found["boxes"]) > 3
    for number, name in enumerate(CAMERAS):
        own = raw["calibration"][name]
        middles = raw["box_to_ego"][kept][:, :, 3] @ np.linalg.inv(own["to_ego"]).T
        wanted = middles[:, :3] @ own["intrinsics"].T - middles[:, 2:3] * [0, 10, 0]
        places = np.concatenate([found["boxes"][:, :3], np.ones((kept.sum(), 1))], 1)
        again = (places @ np.linalg.inv(found["poses"][number]).T)[:, :3] @ found["intrinsics"][number].T
        np.testing.assert_allclose(again, wanted, atol=2e-2)
    np.testing.assert_allclose(found["pose"][:2], found["ego_to_world"][:2, 3], atol=1e-3)


def test_windows_follow_the_samples_of_a_scene(folder):
    windows = drives(2, folder=folder)
    assert len(windows) == 2
    first = windows[0]
    assert first["images"].shape == (2, 6, 48, 128, 3)
    np.testing.assert_array_equal(first["pose"][1], samples(folder)[1]["pose"])


def test_state_moves_by_whole_cells_and_turns():
    state = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    before = jnp.array([[10.0, 20.0, 0.0], [10.0, 20.0, 0.5]])
    # The first vehicle drives two cells ahead along x; the second turns left by a right angle.
    now = jnp.array([[12.0, 20.0, 0.0], [10.0, 20.0, 0.5 + np.pi / 2]])
    found = RUN(state, before, now, space=SPACE)
    np.testing.assert_allclose(found[0, :, :-2], state[0, :, 2:], atol=1e-5)
    assert (jnp.abs(found[0, :, -2:]) < 1e-5).all()
    # A cell ahead (+x) is now where the cell to the left (+y) was.
    np.testing.assert_allclose(found[1], jnp.swapaxes(state[1], 0, 1)[::-1], atol=1e-4)


def test_masks_are_the_cells_that_touch_a_box():
    task = NuScenesCameras(lower=(-4.0, -4.0, -3.0), upper=(4.0, 4.0, 5.0), cells=(4, 4), finer=2)
    boxes = np.zeros((1, 4, 9), np.float32)
    boxes[0, :, 3:7] = [1.8, 0.8, 1, np.pi / 2]  # along y
    boxes[0, 1, 3:5] = 0.6  # a pedestrian between the middles of four cells of 1 m
    boxes[0, :, :2] = [[1.5, -1.5], [-2.0, 2.0], [0.5, 3.5], [3.0, 3.0]]
    batch = {"boxes": boxes, "label": np.array([[0, 5, 8, 0]]), "mask": {"objects": np.array([[1, 1, 1, 0]], bool)}}
    found = np.argwhere(np.asarray(task.masks_of(batch))[0])  # row along y, column along x, mask
    assert found.tolist() == [[1, 5, 0], [2, 5, 0], [3, 5, 0], [5, 1, 1], [5, 2, 1], [6, 1, 1], [6, 2, 1]]


def test_unknown_view_is_an_error():
    with pytest.raises(TaskError, match=r"task.view = 'perspective': unknown. Allowed: lift_splat, deformable."):
        NuScenesCameras(view="perspective").build(nnx.Rngs(0))


def test_views_that_are_left_out_are_counted_for_each_row():
    settings: dict[str, Any] = dict(view="deformable", heads=2, layers=1, width=8, cells=(8, 8))
    task = NuScenesCameras(memory=4, rows=2, **settings)
    loss = jax.eval_shape(lambda batch: task.loss(task.build(nnx.Rngs(0)), batch, None), camera_drives(2, 0))
    assert loss.terms["heat"].metrics["views_lost"].total.shape == loss.terms["masks"].total.shape == (2,)


def test_windows_one_after_the_other_equal_a_longer_window():
    task = NuScenesCameras(
        width=8, memory=4, rows=2, lower=(-4.0, -4.0, -3.0), upper=(4.0, 4.0, 5.0), cells=(8, 8), predictions=4
    )
    model = task.build(nnx.Rngs(0))
    assert model.memory is not None
    kernel = model.memory.add.kernel
    kernel.set_value(100 * jax.random.normal(jax.random.key(1), kernel.get_value().shape))  # 0 at first
    model.eval()
    batch = camera_drives(2, 0, times=4)
    batch["sequence"] = {"starts": np.array([True, True]), "valid": np.ones((2, 4), bool)}
    assert jax.eval_shape(model.mask_logits, jnp.zeros((2, 8, 8, 16))).shape == (2, 16, 16, 2)
    run = nnx.jit(lambda model, batch: model(batch)[0])
    whole = run(model, batch).reshape(2, 4, 8, 8, -1)
    for part, starts in ((slice(0, 2), True), (slice(2, 4), False)):
        window = {name: x[:, part] for name, x in batch.items() if name not in ("mask", "sequence")}
        window["sequence"] = {"starts": np.full(2, starts), "valid": np.ones((2, 2), bool)}
        found = run(model, window).reshape(2, 2, 8, 8, -1)
        np.testing.assert_allclose(found, whole[:, part], atol=1e-5)
    window["sequence"]["starts"] = np.full(2, True)
    forgotten = run(model, window).reshape(2, 2, 8, 8, -1)
    assert jnp.abs(forgotten - whole[:, 2:]).max() > 1e-2


def test_patches_have_the_size_of_the_strides():
    backbone = Backbone(8, nnx.Rngs(0), ((4, 4), (2, 2), (2, 2)))
    backbone.eval()
    found = jax.eval_shape(lambda x, k: backbone(x, k), jnp.zeros((1, 2, 32, 64, 3), jnp.uint8), jnp.ones((1, 2, 3, 3)))
    assert found.shape == (1, 2, 2, 4, 8)
