"""Lift and splat: points equal the calibration, and sums equal a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convoy_zoo.models.street.bev import CELL, DEPTHS, Bev, cloud, ground, intersection_over_union, mask_losses, splat
from convoy_zoo.models.street.camera_scenes import GRID, GROUND, MASKS, PATCH, CameraScenes
from convoy_zoo.models.street.cameras import COLUMNS, ROWS, Rig
from convoy_zoo.models.street.scenes import EXTENT
from tests import zoo
from tests.merging import results


@pytest.fixture(scope="module")
def batch():
    source = CameraScenes(2, seed=5)
    return jax.tree.map(lambda *rows: np.stack(rows), *[source[index] for index in range(2)])


def test_points_project_to_the_middle_of_their_patch_at_their_depth(batch):
    points = np.asarray(cloud(batch["intrinsics"], batch["poses"]))
    shape = (2, 6, ROWS // PATCH[0], COLUMNS // PATCH[1], len(DEPTHS), 3)
    rows = (np.arange(shape[2]) + 0.5) * PATCH[0] - 0.5
    columns = (np.arange(shape[3]) + 0.5) * PATCH[1] - 0.5
    for n, found in enumerate(points.reshape(shape)):
        rig = Rig(batch["intrinsics"][n].astype(float), batch["poses"][n].astype(float))
        for camera in range(6):
            u, v, depth = np.moveaxis(rig.seen(found[camera])[camera] @ rig.intrinsics[camera].T, -1, 0)
            np.testing.assert_allclose(depth, np.broadcast_to(DEPTHS, depth.shape), rtol=1e-4)
            np.testing.assert_allclose(u / depth, np.broadcast_to(columns[:, None], depth.shape), atol=0.02)
            np.testing.assert_allclose(v / depth, np.broadcast_to(rows[:, None, None], depth.shape), atol=0.02)


def test_splat_equals_a_loop():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.3 * EXTENT, 1.3 * EXTENT, (2, 300, 3)).astype(np.float32)
    points[:, 150:] = rng.uniform(-1, 1, (2, 150, 3))  # several in a cell
    features = rng.normal(size=(2, 300, 4)).astype(np.float32)
    wanted, outside = np.zeros((2, GRID, GRID, 4)), 0
    for n in range(2):
        for (x, y, _), feature in zip(points[n], features[n], strict=True):
            column, row = int(np.floor((x + EXTENT) / CELL)), int(np.floor((y + EXTENT) / CELL))
            if 0 <= column < GRID and 0 <= row < GRID:
                wanted[n, row, column] += feature
            else:
                outside += 1
    assert outside > 50
    np.testing.assert_allclose(splat(points, features), wanted, atol=1e-5)


def test_patches_that_see_the_ground_are_at_the_depth_of_level_ground(batch):
    found = np.asarray(ground(batch["intrinsics"], batch["poses"]))
    assert (found.sum(-1) <= 1).all() and found[:, :, 0].sum() == 0  # the first row is above the horizon
    seen = (batch["kind"] == GROUND) & (found.sum(-1) == 1) & (batch["depth"] < 12)
    ratio = DEPTHS[found[seen].argmax(-1)] / batch["depth"][seen]
    assert len(ratio) > 200 and np.median(np.abs(np.log(ratio))) < 0.15  # the middle is half a pixel off, and a slope


def test_scores_and_losses_of_perfect_and_of_missing_masks(batch):
    masks = batch["masks"]
    assert all(results(ratio)["m"] == 1 for ratio in intersection_over_union(masks, masks).values())
    half = masks & (np.arange(GRID) % 2 == 0)[:, None, None]
    for k, (name, ratio) in enumerate(intersection_over_union(half, masks).items()):
        assert name == f"iou/{MASKS[k]}"
        np.testing.assert_allclose(results(ratio)["m"], half[..., k].sum() / masks[..., k].sum(), rtol=1e-5)
    right, wrong = (mask_losses(jnp.where(masks, sign, -sign), masks) for sign in (4.0, -4.0))
    for name in MASKS:
        assert float(right[name].total.sum()) < 0.1 * float(wrong[name].total.sum())
        np.testing.assert_allclose(right[name].weight, GRID**2)


@pytest.mark.slow
def test_training_lowers_every_loss(batch):
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    program = zoo.program(Bev(width=8), batch_size=2, example=example, learning_rate=0.01)
    _, metrics = zoo.run(program, 12 * [batch])
    assert zoo.losses(metrics)[-1] < 0.9 * zoo.losses(metrics)[0]
    means = metrics[..., 0] / metrics[..., 1]
    first, last = (dict(zip(program.metric_names, row, strict=True)) for row in (means[0], means[-1]))
    assert all(last[name] < first[name] for name in (*MASKS, "depth"))
