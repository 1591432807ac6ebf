import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.augmentation import Camera, Crop, Scene
from engine.augmentation.crop import CropDraw
from engine.base.errors import DataError
from engine.plot import project
from tests.augmentation.scenes import HEIGHT, SCENE, WIDTH, example, window
from tests.properties import examples

BLOB = 6.0  # standard deviation of a spot, in pixels


def spot(pixels):
    """Returns an image with a spot where a camera sees a point, the point, and the intrinsics."""
    intrinsics = np.array([[90, 2.5, 61], [0, 80, 52], [0, 0, 1]], np.float32)
    point = np.array([[0.11, -0.07, 1.0]])
    [[u, v]] = project(point, intrinsics)
    half = 0.5 if pixels == "edges" else 0.0
    y, x = np.mgrid[:100, :120] + half  # of the centers of the pixels
    value = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * BLOB**2)).astype(np.float32)
    return np.repeat(value[..., None], 3, -1), point, intrinsics


def centroid(image, pixels):
    half = 0.5 if pixels == "edges" else 0.0
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + half
    weight = np.where(image[..., 0] > 0.05, image[..., 0] - 0.05, 0.0)
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


@pytest.mark.parametrize("pixels", ["centers", "edges"])
@pytest.mark.parametrize("zoom", [1.0, 0.8, 1.3])
def test_projected_point_stays_on_its_spot(pixels, zoom):
    image, point, intrinsics = spot(pixels)
    camera = Camera("image", "intrinsics", pixels=pixels)
    step = Crop(70, 76, zoom=(zoom, zoom), scene=Scene(cameras=camera))
    found = step.apply({"image": image, "intrinsics": intrinsics}, CropDraw(0.7, 0.6, zoom))
    assert found["image"].shape == (70, 76, 3) and found["image"].dtype == np.float32
    [seen] = project(point, found["intrinsics"])
    assert 15 < seen[0] < 61 and 15 < seen[1] < 55  # the whole spot is in the part
    assert centroid(found["image"], pixels) == pytest.approx(seen, abs=0.03)
    assert found["intrinsics"].dtype == np.float32 and found["intrinsics"][0, 1] == pytest.approx(2.5 * zoom)


def bilinear(image, y, x):
    """Returns the value of an image at a position from its edges, by formulas of single numbers."""
    height, width = image.shape[:2]
    y, x = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
    top, left = min(math.floor(y), height - 2), min(math.floor(x), width - 2)
    dy, dx = y - top, x - left
    a, b, c, d = (image[top + i, left + j].astype(float) for i in (0, 1) for j in (0, 1))
    return (a * (1 - dx) + b * dx) * (1 - dy) + (c * (1 - dx) + d * dx) * dy


@pytest.mark.parametrize("zoom", [0.7, 1.5])
def test_resized_part_agrees_with_plain_interpolation(zoom):
    step = Crop(10, 12, zoom=(zoom, zoom), scene=SCENE)
    before = example()
    after = step.apply(before, CropDraw(0.3, 0.9, zoom))
    top, left = 0.3 * (HEIGHT - 10 / zoom), 0.9 * (WIDTH - 12 / zoom)
    for row, column in np.ndindex(10, 12):
        y, x = top + (row + 0.5) / zoom, left + (column + 0.5) / zoom
        expected = bilinear(before["images"][1], y, x)
        assert np.abs(after["images"][1, row, column] - expected).max() <= 0.5 + 1e-3
        assert after["depth"][1, row, column] == before["depth"][1, int(y), int(x)]


def test_crop_without_zoom_copies_pixels_and_moves_the_middle():
    before, step = example(), Crop(9, 11, scene=SCENE)
    after = step.apply(before, CropDraw(0.5, 1.0, 1.0))
    top, left = round(0.5 * (HEIGHT - 9)), WIDTH - 11
    np.testing.assert_array_equal(after["images"], before["images"][:, top : top + 9, left:])
    np.testing.assert_array_equal(after["depth"], before["depth"][:, top : top + 9, left:])
    moved = (before["calibration"]["cameras"]["intrinsics"] - after["calibration"]["cameras"]["intrinsics"])[0]
    np.testing.assert_array_equal(moved, [[0, 0, left], [0, 0, top], [0, 0, 0]])
    assert after["lidar"] is before["lidar"]


def test_window_has_one_draw():
    step = Crop(9, 11, zoom=(0.5, 1.2), scene=SCENE)
    draw = step.draw(np.random.default_rng(0), {})
    together = step.apply(window(3), draw)
    for number in range(3):
        np.testing.assert_array_equal(together["images"][number], step.apply(example(number), draw)["images"])


@given(st.integers(0, 2**32))
@examples(60)
def test_parts_lie_in_the_image(seed):
    step = Crop(10, 12, top=(0.2, 1), zoom=(0.5, 2))
    draw = step.draw(np.random.default_rng(seed), {})
    part = step.part(HEIGHT, WIDTH, Camera("images"), draw)
    assert 0 <= part.top <= part.top + part.height <= HEIGHT + 1e-9
    assert 0 <= part.left <= part.left + part.width <= WIDTH + 1e-9
    assert 0.2 <= draw.top <= 1 and 0.5 <= draw.zoom <= 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(height=0, width=5), "Crop: height = 0: allowed are 1 and more"),
        (dict(height=5, width=5, top=(0.5, 2)), r"Crop: top = \(0.5, 2\)"),
        (dict(height=5, width=5, zoom=(0, 1)), "Crop: zoom"),
        (dict(height=99, width=5), "images has 24 x 40 pixels, but 99 x 5 with a zoom of 1.0 need 99 x 5"),
        (dict(height=20, width=5, zoom=(0.5, 2)), "20 x 5 with a zoom of 0.5 need 40 x 10"),
    ],
)
def test_impossible_parts_are_one_sentence(settings, text):
    with pytest.raises(DataError, match=text):
        Crop(**settings, scene=SCENE).apply(example(), CropDraw(0, 0, 2.0))


def test_labels_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"depth is float32\[2, 3, 3\], but its image has 24 x 40 pixels"):
        Crop(9, 9, scene=SCENE).apply({**example(), "depth": np.zeros((2, 3, 3), np.float32)}, CropDraw(0, 0, 1.0))
