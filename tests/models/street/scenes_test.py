"""Rays hit the nearest box, labels fit the points, and sweeps depend on their seed and index only."""

import numpy as np
import pytest

from convoy_zoo.models.street.scenes import (
    BEAMS,
    CLASSES,
    EXTENT,
    HEIGHT,
    RANGE,
    RAYS,
    StreetScenes,
    cast,
    draw_scene,
    rotation,
)


def inside(points, box, margin):
    local = (points[:, :3] - box[:3]) @ np.block([[rotation(box[6]), np.zeros((2, 1))], [np.zeros((1, 2)), np.eye(1)]])
    return (np.abs(local) < box[3:6] / 2 + margin).all(1)


def centred(box):
    """Returns a box whose third number is the middle, not the bottom."""
    return np.array([*box[:2], box[2] + box[5] / 2, *box[3:]])


@pytest.fixture(scope="module")
def sweeps():
    source = StreetScenes(4, seed=3)
    return [source[index] for index in range(4)]


def test_a_sweep_depends_on_its_seed_and_index_only(sweeps):
    again, other = StreetScenes(100, seed=3)[2], StreetScenes(4, seed=4)[2]
    assert all(np.array_equal(again[name], sweeps[2][name]) for name in again)
    assert len(other["points"]) != len(again["points"]) or not np.array_equal(other["points"], again["points"])


def test_an_index_outside_of_the_source_is_refused():
    source = StreetScenes(2, seed=3)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            source[index]


def test_rays_hit_the_nearest_box():
    rng = np.random.default_rng(0)
    place = rng.uniform(4, 20, (12, 1)) * rotation(rng.uniform(0, 6, 12))[:, 0]
    boxes = np.column_stack([place, rng.uniform(-0.5, 1, 12), rng.uniform(0.5, 4, (12, 3)), rng.uniform(-3, 3, 12)])
    rays, depth, owner, alone = cast(boxes, np.array([0.01, -0.02]))
    assert set(owner) > {-1, 0} and (np.bincount(owner + 1, minlength=13)[1:] <= alone).all()
    for number in rng.choice(np.flatnonzero(depth < RANGE - 2), 200):
        steps = np.linspace(0.5, depth[number] + 2, 4000)  # along the ray, at most 15 mm apart
        points = rays[number] * steps[:, None] + [0, 0, HEIGHT]
        taken = [inside(points, centred(box), 0) for box in boxes]
        below = points[:, 2] < points[:, :2] @ [0.01, -0.02]
        blocked = np.logical_or.reduce([below, *taken])
        assert blocked.any() and abs(steps[blocked.argmax()] - depth[number]) < 0.1
        if owner[number] >= 0:
            assert inside(
                points[np.abs(steps - depth[number] - 0.02) < 0.05], centred(boxes[owner[number]]), 0.05
            ).any()


def test_a_ray_through_two_parts_of_an_object_counts_once():
    boxes, level = np.array([[10.0, 0, 0, 1, 2, 2, 0], [12.0, 0, 0, 1, 2, 2, 0]]), np.zeros(2)
    apart, (together,) = cast(boxes, level)[3], cast(boxes, level, np.array([0, 0]))[3]
    assert max(apart) <= together < 0.7 * sum(apart)


def test_objects_on_the_ground_do_not_overlap():
    share = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 9)] * 2), -1).reshape(-1, 2)
    for seed in range(6):
        boxes = np.stack(draw_scene(np.random.default_rng(seed)).boxes)
        boxes = boxes[boxes[:, 2] == 0]  # not the crowns of trees
        turn = rotation(boxes[:, 6])
        points = boxes[:, None, :2] + np.einsum("pk,nk,njk->npj", share, boxes[:, 3:5], turn)
        offset = points[:, :, None] - boxes[:, :2]  # [boxes, points, boxes, 2]
        local = np.abs(np.einsum("npmj,mjk->npmk", offset, turn)) - boxes[:, 3:5] / 2
        assert np.hypot(*boxes[:, :2].T).min() > 2
        within = (local < 0).all(-1).any(1)  # [boxes, boxes]
        assert np.array_equal(within, np.eye(len(boxes), dtype=bool))


def test_every_label_has_points_and_every_class_occurs(sweeps):
    assert set(np.concatenate([sweep["label"] for sweep in sweeps])) == set(range(len(CLASSES)))
    for sweep in sweeps:
        assert 20_000 < len(sweep["points"]) <= RAYS and RAYS % BEAMS == 0
        assert np.abs(sweep["boxes"][:, :2]).max() < EXTENT and np.abs(sweep["boxes"][:, 6]).max() <= np.pi
        for box, hits in zip(sweep["boxes"], sweep["hits"], strict=True):
            assert inside(sweep["points"], box, 0.2).sum() >= hits >= 1  # 0.2 m: ten times the noise
        moves = np.linalg.norm(sweep["boxes"][:, 7:], axis=1) > 0
        assert np.array_equal(moves, sweep["moving"] == 1)


def test_some_objects_are_hidden_by_others(sweeps):
    hits, alone = (np.concatenate([sweep[name] for sweep in sweeps]) for name in ("hits", "alone"))
    assert (hits <= alone).all() and 0.05 < (hits < 0.4 * alone).mean() < 0.6
