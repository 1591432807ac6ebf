import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.perception import box_iou, box_iou_3d, rotated_intersection, rotated_iou
from tests.perception.goldens import differing

PAIRS = 200


@functools.cache
def rectangles():
    """Returns pairs of rectangles; the first hundred are alike, turned, moved, shrunk, or parallel."""
    rng = np.random.default_rng(0)
    low, high = (-2, -2, 0.3, 0.3, -4), (2, 2, 4, 4, 4)
    a, b = rng.uniform(low, high, (2, PAIRS, 5))
    b[:100] = a[:100]
    b[20:40, 4] += np.pi / 2
    b[40:60, 4] += 1e-7
    b[60:70, :2] += 1e-4
    b[70:80, 2:4] *= 0.5
    b[80:100, :4] = rng.uniform(low[:4], high[:4], (20, 4))
    return a, b


def corners(x, y, length, width, heading):
    sides = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2
    cos, sin = np.cos(heading), np.sin(heading)
    return sides @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def clipped_area(a, b):
    """Returns the area of a polygon that each side of another one cuts (Sutherland and Hodgman 1974)."""
    polygon, sides = list(corners(*a)), corners(*b)
    for start, end in zip(sides, np.roll(sides, -1, 0), strict=True):
        left = [(end - start)[0] * (p - start)[1] - (end - start)[1] * (p - start)[0] for p in polygon]
        cut = []
        for k, (point, side) in enumerate(zip(polygon, left, strict=True)):
            after, behind = polygon[(k + 1) % len(polygon)], left[(k + 1) % len(polygon)]
            cut += [point] if side >= 0 else []
            cut += [point + (after - point) * side / (side - behind)] if side * behind < 0 else []
        polygon = cut
        if not polygon:
            return 0.0
    points, after = np.array(polygon), np.roll(polygon, -1, 0)
    return (points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]).sum() / 2


def areas(a, b):
    return np.array([clipped_area(*pair) for pair in zip(a, b, strict=True)])


def test_overlap_of_rotated_rectangles_equals_clipped_polygons():
    a, b = rectangles()
    wanted = areas(a, b)
    assert 0.1 < (wanted == 0).mean() < 0.5
    found = jax.jit(rotated_intersection)(a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=5e-6)


@pytest.fixture(scope="module")
def gradients():
    a, b = (jnp.float32(x).at[-1].set(0) for x in rectangles())
    return jax.jit(jax.grad(lambda a, b: rotated_intersection(a, b).sum(), (0, 1)))(a, b)


def test_gradients_of_the_overlap_equal_differences_of_clipped_polygons(gradients):
    some = slice(100, 120)
    a, b = (x[some] for x in rectangles())
    for k in range(5):
        step = 1e-6 * np.eye(5)[k]
        np.testing.assert_allclose(gradients[0][some, k], (areas(a + step, b) - areas(a - step, b)) / 2e-6, atol=1e-4)
        np.testing.assert_allclose(gradients[1][some, k], (areas(a, b + step) - areas(a, b - step)) / 2e-6, atol=1e-4)


def test_gradients_are_finite_for_rectangles_that_are_alike_or_have_no_area(gradients):
    assert all(jnp.isfinite(x).all() for x in gradients)


def test_far_boxes_lose_only_the_digits_of_their_coordinates():
    near = np.array([[0, 0, 4, 2, 0.5], [0.5, 0, 4, 2, 0.5]], np.float32)
    far = near + np.array([4096, -8192, 0, 0, 0], np.float32)
    found = jax.jit(rotated_iou)(np.stack([near, far]), np.stack([near[:1], far[:1]]))
    assert (found[:, 0] == 1).all()
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_box_iou_equals_torchvision_and_is_zero_without_area():
    assert differing("box_iou", 1) == []
    none = jnp.array([1.0, 1, 1, 1])
    assert box_iou(none, none) == 0
    assert box_iou(jnp.array([0.0, 0, 1, 1]), jnp.array([2.0, 2, 1, 1])) == 0  # the second one is inside out


def test_boxes_in_half_precision_are_compared_in_float32():
    flat = jnp.array([[0, 0, 300, 300], [1, 1, 1, 1], [0, 0, 300, 150]], jnp.float16)
    assert box_iou(flat, flat[:1]).tolist() == [1, 0, 0.5]
    turned = jnp.array([[50, 20, 4, 2, 0.3], [50.5, 20, 4, 2, 0.3]], jnp.bfloat16)
    found = jax.jit(lambda x: (rotated_iou(*x), rotated_iou(*x.astype(jnp.float32))))(turned)
    assert found[0] == found[1]


def test_overlap_in_three_dimensions_is_that_of_areas_and_heights():
    a, b = rectangles()
    rng = np.random.default_rng(1)
    z, height = rng.uniform(-1, 1, (2, PAIRS)), rng.uniform(0.5, 3, (2, PAIRS))
    both = [np.stack([x[:, 0], x[:, 1], z[k], x[:, 2], x[:, 3], height[k], x[:, 4]], 1) for k, x in enumerate((a, b))]
    shared = np.minimum(*(z + height / 2)) - np.maximum(*(z - height / 2))
    volume = areas(a, b) * np.maximum(shared, 0)
    wanted = volume / (a[:, 2:4].prod(1) * height[0] + b[:, 2:4].prod(1) * height[1] - volume)
    np.testing.assert_allclose(jax.jit(box_iou_3d)(*map(jnp.float32, both)), wanted, atol=5e-6)
