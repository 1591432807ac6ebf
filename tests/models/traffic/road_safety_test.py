"""Collisions and departures from the road equal slow definitions."""

import itertools

import jax
import numpy as np

from convoy_zoo.models.traffic.road_safety import collisions, nearest, off_road
from engine import plot


def overlap(one, two):
    """Whether two polygons `[corners, 2]` overlap: an edge crosses another, or a corner is inside."""

    def cross(a, b):
        return a[0] * b[1] - a[1] * b[0]

    def inside(point, polygon):
        sides = [cross(b - a, point - a) for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True)]
        return min(sides) > 0 or max(sides) < 0

    def crosses(a, b, c, d):
        return cross(b - a, c - a) * cross(b - a, d - a) < 0 and cross(d - c, a - c) * cross(d - c, b - c) < 0

    edges = [list(zip(p, np.roll(p, -1, 0), strict=True)) for p in (one, two)]
    corners = any(inside(p, two) for p in one) or any(inside(p, one) for p in two)
    return corners or any(crosses(*a, *b) for a, b in itertools.product(*edges))


def test_collisions_are_overlaps_of_boxes():
    rng = np.random.default_rng(0)
    scenes, agents = 60, 5
    pose = rng.uniform([-5, -5, -4], [5, 5, 4], (scenes, agents, 3)).astype(np.float32)
    size = rng.uniform([1, 0.5], [6, 2.5], (scenes, agents, 2)).astype(np.float32)
    valid = rng.random((scenes, agents)) < 0.8
    found = np.array(jax.jit(collisions)(pose, size, valid))
    wanted = np.zeros_like(valid)
    for scene in range(scenes):
        boxes = [plot.outline([*p[:2], *s, p[2]]) for p, s in zip(pose[scene], size[scene], strict=True)]
        for a, b in itertools.permutations(np.flatnonzero(valid[scene]), 2):
            wanted[scene, a] |= overlap(boxes[a], boxes[b])
    np.testing.assert_array_equal(found, wanted)
    assert 0.2 < found[valid].mean() < 0.8


def test_a_vehicle_is_on_the_road_within_half_of_the_width_of_a_lane():
    rng = np.random.default_rng(0)
    points = rng.uniform(-10, 10, (1, 2, 1, 2)) + rng.uniform(-4, 4, (1, 2, 4, 2)).cumsum(-2)
    width, position = np.array([[3.0, 5.0]]), rng.uniform(-15, 15, (1, 300, 2))
    dense = [np.concatenate([np.linspace(a, b, 3000) for a, b in itertools.pairwise(line)]) for line in points[0]]
    distance = np.array([[np.linalg.norm(line - p, axis=-1).min() for line in dense] for p in position[0]])
    clear = (np.abs(distance - width / 2) > 0.01).all(-1)
    for road in ([True, True], [True, False]):
        found = np.array(off_road(position, points, width, np.array([road])))
        wanted = ~((distance <= width / 2) & road).any(-1)
        np.testing.assert_array_equal(found[0][clear], wanted[clear])
        assert 0.1 < wanted.mean() < 1


def test_the_nearest_segment_gives_offset_and_heading():
    segments = np.array([[[0, 0], [10, 0]], [[10, 0], [10, 10]]], float)
    offset, heading = nearest(np.array([[4, 3], [8, 6], [-2, 0]], float), segments)
    np.testing.assert_allclose(offset, [[0, -3], [2, 0], [2, 0]], atol=1e-6)
    np.testing.assert_allclose(heading, [0, np.pi / 2, 0], atol=1e-6)
