import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.augmentation import Boxes
from engine.augmentation.footprints import box_geometry, inside, overlaps
from engine.base.errors import DataError
from tests.augmentation.footprints import shared_area
from tests.augmentation.scenes import example
from tests.properties import examples


def boxes(rng, count, spread=4.0):
    found = rng.normal(size=(count, 7)) * spread
    found[:, 3:6] = rng.uniform(0.5, 4, (count, 3))
    return found


def test_overlap_agrees_with_the_area_of_clipped_polygons():
    rng = np.random.default_rng(0)
    one, two = boxes(rng, 40), boxes(rng, 50)
    expected = np.array([[shared_area(a, b) > 1e-9 for b in two] for a in one])
    assert 0.1 < expected.mean() < 0.7
    np.testing.assert_array_equal(overlaps(one, two), expected)


@given(st.integers(0, 2**32), st.floats(-4, 4))
@examples(60)
def test_overlap_does_not_change_if_the_scene_is_rotated(seed, angle):
    rng = np.random.default_rng(seed)
    one, two = boxes(rng, 3), boxes(rng, 3)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = [x.copy() for x in (one, two)]
    for x in turned:
        x[:, :2] = x[:, :2] @ turn.T
        x[:, 6] += angle
    np.testing.assert_array_equal(overlaps(*turned), overlaps(one, two))
    np.testing.assert_array_equal(overlaps(two, one), overlaps(one, two).T)


def test_rectangles_whose_bounds_overlap_may_be_apart():
    flat = np.array([[0, 0, 0, 2, 2, 1, 0.0]])
    turned = np.array(
        [[1.75, 1.75, 0, 2, 2, 1, math.pi / 4], [1.6, 1.6, 0, 2, 2, 1, math.pi / 4], [2, 0, 0, 2, 2, 1, 0]]
    )
    assert overlaps(flat, turned).tolist() == [[False, True, False]]  # the last one touches
    assert overlaps(flat, np.zeros((0, 7))).shape == (1, 0)


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_points_inside_agree_with_single_numbers(margin):
    rng = np.random.default_rng(0)
    points, [box] = rng.normal(size=(2000, 3)) * 2, boxes(rng, 1, 0.5)
    expected = []
    for x, y, z in (points - box[:3]).tolist():
        ahead = math.cos(box[6]) * x + math.sin(box[6]) * y
        left = math.cos(box[6]) * y - math.sin(box[6]) * x
        half = (box[3:6] / 2 + margin).tolist()
        expected.append(abs(ahead) <= half[0] and abs(left) <= half[1] and abs(z) <= half[2])
    assert 20 < sum(expected) < 1000
    np.testing.assert_array_equal(inside(points, box, margin), expected)


def test_geometry_is_the_same_from_each_kind_of_description():
    found = example(boxes=6)
    geometry = box_geometry(found, Boxes("boxes"), "test")
    np.testing.assert_array_equal(geometry, found["boxes"][:, :7].astype(np.float64))
    bottom = box_geometry(found, Boxes("boxes", z="bottom"), "test")
    np.testing.assert_allclose(bottom[:, 2], geometry[:, 2] + geometry[:, 5] / 2)
    wide = {**found, "box_size": found["box_size"][:, [1, 0, 2]]}
    by_pose = box_geometry(wide, Boxes(pose="box_to_ego", size="box_size", size_order="width, length, height"), "test")
    np.testing.assert_allclose(by_pose[:, 3:6], found["box_size"])
    np.testing.assert_allclose(by_pose[:, 6], geometry[:, 6], atol=1e-6)
    apart = box_geometry(found, Boxes(center="center", size="box_size_2", yaw="yaw"), "test")
    np.testing.assert_array_equal(apart[:, 6], found["yaw"].astype(float))


@pytest.mark.parametrize(
    ("described", "text"),
    [
        (Boxes(center="center"), "the boxes need a size, and a yaw or a pose"),
        (Boxes("images"), r"images is uint8\[2, 24, 40, 3\]"),
        (Boxes("window"), "window has 3 dimensions instead of 2. Objects cannot be inserted into windows"),
    ],
)
def test_other_boxes_are_refused(described, text):
    with pytest.raises(DataError, match=text):
        box_geometry({**example(), "window": np.zeros((2, 3, 9))}, described, "test")
