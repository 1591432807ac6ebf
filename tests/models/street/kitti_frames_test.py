"""Boxes move between the lidar, the camera and the image of KITTI, in numpy and in JAX alike."""

import numpy as np
import pytest

from convoy_zoo.models.miniatures.kitti import P2, SIZE, to_camera
from convoy_zoo.models.street.kitti_frames import camera_boxes, clipped, image_boxes, lidar_boxes


@pytest.fixture(scope="module")
def boxes():
    rng = np.random.default_rng(0)
    return rng.uniform([3, -15, -2, 0.5, 0.5, 1, -3], [40, 15, 0, 5, 3, 3, 3], (2, 9, 7))


def test_boxes_of_the_camera_become_those_of_the_lidar_again(boxes):
    matrix = np.stack([to_camera()] * 2)
    back = lidar_boxes(camera_boxes(boxes, matrix, np), matrix, np)
    np.testing.assert_allclose(back[..., :6], boxes[..., :6], atol=1e-12)
    np.testing.assert_allclose(np.cos(back[0, :, 6] - boxes[0, :, 6]), 1, atol=1e-3)  # the camera is tilted by 1 degree


def test_jax_gives_the_same_in_float32(boxes):
    matrix = np.stack([to_camera()] * 2)
    wanted = camera_boxes(boxes, matrix, np)
    np.testing.assert_allclose(camera_boxes(boxes, matrix), wanted, atol=1e-4)
    np.testing.assert_allclose(image_boxes(wanted, np.stack([P2] * 2)), image_boxes(wanted, P2[None], np), rtol=1e-3)


def test_image_box_surrounds_the_corners_and_is_cut_at_the_image():
    projection = np.array([[100.0, 0, 50, 0], [0, 100, 40, 0], [0, 0, 1, 0]])
    box = np.array([[0, 1.0, 10, 2, 2, 4, 0]])  # 4 m wide in the image, from 9 to 11 m
    [found] = image_boxes(box, projection, np)
    assert found == pytest.approx([50 - 200 / 9, 40 - 100 / 9, 50 + 200 / 9, 40 + 100 / 9])
    behind = image_boxes(box * [1, 1, -1, 1, 1, 1, 1], projection, np)
    assert np.isfinite(behind).all()
    assert clipped(np.array([[-5.0, 3, 5000, 5000]]), SIZE, np).tolist() == [[0, 3, 1241, 374]]
