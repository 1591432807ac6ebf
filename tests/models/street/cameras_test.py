"""Points project to pixels computed by hand, and each pixel sees the nearest box, as a search over all boxes does."""

import numpy as np
import pytest

from convoy_zoo.models.street.cameras import CAMERAS, COLUMNS, HORIZON, NEAR, ROWS, Rig, cast, corners
from convoy_zoo.models.street.scenes import rotation

FRONT, BACK = CAMERAS.index("front"), CAMERAS.index("back")


def pixels(rig, points):
    """Returns u, v and the depth of points in the frame of each camera."""
    u, v, w = np.moveaxis(np.einsum("c...i,cji->c...j", rig.seen(points), rig.intrinsics), -1, 0)
    return u / w, v / w, w


def test_a_point_projects_to_the_pixel_computed_by_hand():
    # 10 m ahead, 2 m to the left and 1 m below the camera in front
    u, v, depth = pixels(Rig.mounted(), np.array([[11.7, 2.0, 0.5]]))
    focal = COLUMNS / 2 / np.tan(np.deg2rad(35))
    np.testing.assert_allclose(u[FRONT], COLUMNS / 2 - 0.5 - 0.2 * focal)
    np.testing.assert_allclose(v[FRONT], HORIZON - 0.5 + 0.1 * focal)
    np.testing.assert_allclose(depth[FRONT], 10)
    u, v, depth = pixels(Rig.mounted(), np.array([[-5.0, 2.0, 1.6]]))
    focal = COLUMNS / 2 / np.tan(np.deg2rad(55))  # 5 m behind, to the right in the image
    np.testing.assert_allclose(
        [u[BACK, 0], v[BACK, 0], depth[BACK, 0]], [COLUMNS / 2 - 0.5 + 0.4 * focal, HORIZON - 0.5, 5]
    )


def test_the_ray_of_a_pixel_projects_back_to_it():
    rig = Rig.mounted(np.random.default_rng(0))
    rays = rig.rays()
    for camera in range(6):
        u, v, depth = pixels(rig, rig.poses[camera, :3, 3] + 7 * rays[camera])
        np.testing.assert_allclose(u[camera], np.broadcast_to(np.arange(COLUMNS), (ROWS, COLUMNS)), atol=1e-6)
        np.testing.assert_allclose(v[camera], np.broadcast_to(np.arange(ROWS)[:, None], (ROWS, COLUMNS)), atol=1e-6)
        np.testing.assert_allclose(depth[camera], 7)
    np.testing.assert_allclose(
        rig.poses[:, :3, :3] @ rig.poses[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (6, 1, 1)), atol=1e-12
    )


def test_the_nearer_box_hides_the_other():
    boxes = np.array([[20.0, 0, 0, 2, 8, 4, 0], [10.0, 0, 0, 2, 1, 4, 0]])
    depth, owner, face = (x[FRONT, HORIZON] for x in cast(boxes, Rig.mounted()))
    middle = COLUMNS // 2
    assert owner[middle] == 1 and depth[middle] == pytest.approx(9 - 1.7)
    side = middle + 15  # past the side of the nearer box
    assert owner[side] == 0 and depth[side] == pytest.approx(19 - 1.7)
    np.testing.assert_allclose(face[[middle, side]], [[-1, 0, 0], [-1, 0, 0]], atol=1e-6)
    assert owner[0] == -1 and depth[0] == np.inf


@pytest.fixture(scope="module")
def crowd():
    """Boxes on all sides, some of them partly behind the plane in front of a camera, and what the cameras see."""
    rng = np.random.default_rng(1)
    place = rng.uniform(4, 25, (40, 1)) * rotation(rng.uniform(-np.pi, np.pi, 40))[:, 0]
    boxes = np.column_stack([place, rng.uniform(0, 1, 40), rng.uniform(0.4, 5, (40, 3)), rng.uniform(-3, 3, 40)])
    boxes = np.concatenate([boxes, [[0, 9, 0, 40, 4, 8, 0.02], [0, -9, 0, 40, 4, 8, -0.02]]])  # houses
    rig = Rig.mounted(rng)
    return boxes, rig, *cast(boxes, rig)


def inside(points, box, margin):
    offset = points - box[:3] - [0, 0, box[5] / 2]
    offset[..., :2] = offset[..., :2] @ rotation(box[6])
    return (np.abs(offset) < box[3:6] / 2 + margin).all(-1)


def test_the_pixels_of_a_box_are_on_its_surface(crowd):
    boxes, rig, depth, owner, face = crowd
    points = rig.poses[:, None, None, :3, 3] + rig.rays() * np.where(owner < 0, 0, depth)[..., None]
    assert len(np.unique(owner)) > 12
    for number, box in enumerate(boxes):
        at, out = points[owner == number], face[owner == number]
        assert inside(at, box, 1e-3).all() and not inside(at, box, -1e-3).any()
        assert inside(at - 0.01 * out, box, 1e-3).all() and not inside(at + 0.01 * out, box, 0).any()


def test_every_pixel_sees_what_a_search_over_all_boxes_finds(crowd):
    boxes, rig, depth, owner, _ = crowd
    rng, rays = np.random.default_rng(2), rig.rays()
    for _ in range(100):
        camera, v, u = rng.integers(6), rng.integers(ROWS), rng.integers(COLUMNS)
        steps = np.linspace(NEAR, 40, 3000)  # about a centimetre apart
        points = rig.poses[camera, :3, 3] + rays[camera, v, u] * steps[:, None]
        taken = np.logical_or.reduce([inside(points, box, 0) for box in boxes])
        if taken.any():
            assert abs(steps[taken.argmax()] - depth[camera, v, u]) < 0.15
        else:
            assert owner[camera, v, u] == -1 or depth[camera, v, u] > 39 or grazes(points, boxes)


def grazes(points, boxes):
    """Returns whether a ray passes a box so closely that steps of a centimetre may miss it."""
    return any(inside(points, box, 0.02).any() for box in boxes)


def test_corners_of_a_turned_box():
    found = corners(np.array([[1.0, 2, 0.5, 4, 2, 3, np.pi / 2]]))[0]
    np.testing.assert_allclose(found[:4], [[0, 4, 0.5], [0, 0, 0.5], [2, 0, 0.5], [2, 4, 0.5]], atol=1e-12)
    np.testing.assert_allclose(found[4:], found[:4] + np.array([0, 0, 3]))
