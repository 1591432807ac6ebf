"""Overlaps of boxes: known areas, symmetry, and the share of points that lie in both boxes."""

import numpy as np
import pytest

from engine.driving.box_overlaps import camera_box_overlaps, image_overlaps


def box(x=0.0, y=0.0, z=0.0, height=2.0, width=2.0, length=4.0, yaw=0.0):
    return np.array([[x, y, z, height, width, length, yaw]])


def test_image_boxes_that_touch_share_nothing_and_a_part_is_a_whole_of_itself():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 2, 2], [4, 0, 8, 4], [0, 0, 0, 0.0]])
    assert image_overlaps(boxes, boxes[[1, 0, 0, 3]]).tolist() == [0.25, 0.25, 0, 0]
    assert image_overlaps(boxes, boxes[[1, 0, 0, 3]], of_first=True).tolist() == [0.25, 1, 0, 0]


@pytest.mark.parametrize(
    ("a", "b", "ground", "space"),
    [
        (box(), box(), 1, 1),
        (box(yaw=0.7), box(yaw=0.7 - np.pi), 1, 1),
        (box(), box(yaw=np.pi / 2), 4 / 12, 4 / 12),
        (box(), box(x=2), 1 / 3, 1 / 3),
        (box(), box(x=4), 0, 0),  # they touch
        (box(), box(y=-1), 1, 1 / 3),
        (box(), box(y=3), 1, 0),
        (box(width=1), box(width=0), 0, 0),
    ],
)
def test_overlaps_of_known_boxes(a, b, ground, space):
    found = np.array(camera_box_overlaps(a, b))[:, 0]
    np.testing.assert_allclose(found, [ground, space], atol=1e-12)


def test_a_square_turned_by_an_eighth_shares_an_octagon():
    [found], _ = camera_box_overlaps(box(width=4), box(width=4, yaw=np.pi / 4))
    octagon = 32 * (np.sqrt(2) - 1)
    assert found == pytest.approx(octagon / (32 - octagon), abs=1e-12)


def test_overlaps_are_the_shares_of_points_in_both_boxes():
    rng = np.random.default_rng(3)
    boxes = rng.uniform(-1.5, 1.5, (2, 40, 7)) * [1, 0.5, 1, 0, 0, 0, 2] + [0, 0, 0, 1.5, 2, 3, 0]
    found = camera_box_overlaps(*boxes)
    np.testing.assert_allclose(found, camera_box_overlaps(*boxes[::-1]), atol=1e-12)
    points = rng.uniform(-5, 5, (20_000, 2))
    for pair, ground in zip(boxes.swapaxes(0, 1), found[0], strict=True):
        inside = [_is_inside(points, one) for one in pair]
        assert ground == pytest.approx((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum(), abs=0.04)


def _is_inside(points, one):
    x, z = (points - one[[0, 2]]).T
    cos, sin = np.cos(one[6]), np.sin(one[6])  # the length lies along (cos, -sin)
    return (abs(cos * x - sin * z) < one[5] / 2) & (abs(sin * x + cos * z) < one[4] / 2)


def test_blocks_of_pairs_give_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0.5, 2, (2, 30, 7))
    whole = camera_box_overlaps(*boxes)
    assert (whole[1] > 0).sum() > 5
    monkeypatch.setattr("engine.driving.box_overlaps._BLOCK", 7)
    np.testing.assert_array_equal(camera_box_overlaps(*boxes), whole)
