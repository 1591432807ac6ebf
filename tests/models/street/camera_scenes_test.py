"""Masks fit the scenes and the images, and scenes depend on their seed and index only."""

import numpy as np
import pytest

from convoy_zoo.models.street.camera_prior import main, overlap, prior
from convoy_zoo.models.street.camera_scenes import (
    CLUTTER,
    GRID,
    GROUND,
    LINE,
    PATCH,
    SKY,
    CameraScenes,
    Street,
    draw_street,
    masks,
)
from convoy_zoo.models.street.cameras import COLUMNS, ROWS, Rig
from convoy_zoo.models.street.scenes import EXTENT

CELL = 2 * EXTENT / GRID


@pytest.fixture(scope="module")
def scenes():
    source = CameraScenes(6, seed=3)
    return [source[index] for index in range(6)]


def test_a_scene_depends_on_its_seed_and_index_only(scenes):
    again, other = CameraScenes(100, seed=3)[2], CameraScenes(6, seed=4)[2]
    assert all(np.array_equal(again[name], scenes[2][name]) for name in again)
    assert not np.array_equal(other["images"], again["images"])


def test_the_mask_of_a_box_covers_its_cells():
    street = Street(0.0, np.array([0.0, 0.0]), np.zeros(2), None)
    taken = masks(np.array([[10.0, -4, 0, 4, 2, 2, 0], [-10, 4, 0, 4, 2, 2, np.pi / 2]]), street)[..., 0]
    rows, columns = np.nonzero(taken)  # rows along y
    x, y = (columns + 0.5) * CELL - EXTENT, (rows + 0.5) * CELL - EXTENT
    assert taken.sum() == 2 * 8 / CELL**2
    first = x > 0
    assert (np.abs(x[first] - 10) < 2).all() and (np.abs(y[first] + 4) < 1).all()
    assert (np.abs(x[~first] + 10) < 1).all() and (np.abs(y[~first] - 4) < 2).all()


def test_lines_of_the_mask_turn_with_the_street():
    shift, turn = np.array([3.0, 1.0]), 0.7
    painted = masks(np.zeros((0, 7)), Street(turn, shift, np.zeros(2), 6.0))[..., 1]
    for along, across, wanted in ((-5, 1.75, True), (-5, 0, False), (6, 1.75, False), (6, 15, True), (9, 15, False)):
        x, y = shift + along * np.array([np.cos(turn), np.sin(turn)]) + across * np.array([-np.sin(turn), np.cos(turn)])
        near = painted[int((y + EXTENT) / CELL), int((x + EXTENT) / CELL)]
        assert near == wanted, (along, across)


def test_painted_patches_are_at_lines_and_vehicles_at_their_cells(scenes):
    near, objects = [], []
    for scene in scenes:
        rig = Rig(scene["intrinsics"].astype(float), scene["poses"].astype(float))
        rays = rig.rays()[:, PATCH[0] // 2 :: PATCH[0], PATCH[1] // 2 :: PATCH[1]]
        known = scene["depth"] < 12
        points = rig.poses[:, None, None, :2, 3] + rays[..., :2] * np.where(known, scene["depth"], 0)[..., None]
        for kinds, layer, reach, found in ((LINE, 1, 2, near), ((0, 1), 0, 1, objects)):
            at = points[known & np.isin(scene["kind"], kinds)]
            cell = np.floor((at + EXTENT) / CELL).astype(int)
            shifts = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
            wide = [np.roll(scene["masks"][..., layer], shift, (0, 1)) for shift in shifts]
            found.extend(np.logical_or.reduce(wide)[cell[:, 1], cell[:, 0]])
    assert len(near) > 100 and np.mean(near) > 0.8  # the middle of a patch may be away from its line
    assert len(objects) > 100 and np.mean(objects) > 0.98


def test_kinds_and_depths_agree(scenes):
    for scene in scenes:
        assert scene["images"].shape == (6, ROWS, COLUMNS, 3) and scene["images"].std() > 20
        assert np.isin(scene["kind"], range(SKY + 1)).all()
        assert (np.isinf(scene["depth"][scene["kind"] == SKY])).all()
        assert (scene["depth"][scene["kind"] <= CLUTTER] < 80).all()
        assert (scene["depth"][scene["kind"] == GROUND] > 1).all()


def test_crossing_streets_are_free_of_houses():
    crossings = 0
    for seed in range(12):
        scene, street = draw_street(np.random.default_rng(seed))
        crossings += street.crossing is not None
        if street.crossing is not None:
            for box, label in zip(scene.boxes, scene.labels, strict=True):
                assert label >= 0 or -5.3 < box[1] < 8.8 or abs(box[0] - street.crossing) > 3.6
    assert 0 < crossings < 12


@pytest.mark.parametrize("flag", ["--count=3", "--heldout=0"])
def test_too_few_scenes_for_the_prior_are_an_error(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([flag])
    assert f"{flag.replace('=', ' = ')}: allowed is a whole number from" in capsys.readouterr().err


def test_the_prior_predicts_the_cells_that_are_often_in_a_mask():
    often = np.zeros((GRID, GRID, 2), bool)
    often[3:20, 5, :], often[40, 7:30, 1] = True, True
    rng = np.random.default_rng(0)
    scenes = often & (rng.random((50, GRID, GRID, 2)) < 0.8) | (rng.random((50, GRID, GRID, 2)) < 0.001)
    found = prior(scenes[:40], scenes[40:])
    assert np.array_equal(found, often)
    np.testing.assert_allclose(overlap(often[None], often[None]), 1)
    half = often & (np.arange(GRID) % 2 == 0)[:, None, None]
    np.testing.assert_allclose(overlap(half[None], often[None])[0], half[..., 0].sum() / often[..., 0].sum())


def test_boxes_keep_their_place_and_heading_in_the_street():
    street, rng = Street(0.7, np.array([3.0, 1.0]), np.array([0.01, -0.02]), None), np.random.default_rng(0)
    boxes = rng.uniform(-3, 3, (20, 7))
    placed = street.place(boxes)
    ahead = [x[:, :2] + np.stack([np.cos(x[:, 6]), np.sin(x[:, 6])], -1) for x in (boxes, placed)]
    np.testing.assert_allclose(street.find(placed[:, :2]), boxes[:, :2], atol=1e-12)
    np.testing.assert_allclose(street.find(ahead[1]), ahead[0], atol=1e-12)
    np.testing.assert_allclose(placed[:, 2], boxes[:, 2] + placed[:, :2] @ [0.01, -0.02])
