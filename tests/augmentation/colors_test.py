import colorsys
from typing import Any

import numpy as np
import pytest

from engine.augmentation.colors import brighten, change_contrast, gray, saturate, shift_hue


def image(dtype=np.float64):
    found = np.random.default_rng(0).random((3, 7, 9)).astype(dtype)
    found[:, 0, :5] = np.array([[0, 0, 0], [1, 1, 1], [0.4, 0.4, 0.4], [1, 0, 0], [0.2, 0.9, 0.9]]).T
    return found


def changed(function, factor, dtype: Any = np.float64):
    found = image(dtype)
    function(found, factor)
    assert found.dtype == dtype
    return found


def pixels(x):
    return x.reshape(3, -1).T.tolist()


def cut(values):
    return [min(max(value, 0), 1) for value in values]


def gray_of(pixel):
    return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


@pytest.mark.parametrize("turns", [-0.5, -0.3, -0.01, 0.0, 0.2, 0.5])
def test_hue_agrees_with_colorsys(turns):
    expected = []
    for pixel in pixels(image()):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    np.testing.assert_allclose(pixels(changed(shift_hue, turns)), expected, atol=1e-12)
    np.testing.assert_allclose(pixels(changed(shift_hue, turns, np.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_other_changes_agree_with_the_formulas_of_torchvision(factor):
    before = pixels(image())
    mean = sum(map(gray_of, before)) / len(before)
    expected = {
        brighten: [cut(factor * value for value in pixel) for pixel in before],
        change_contrast: [cut(factor * value + (1 - factor) * mean for value in pixel) for pixel in before],
        saturate: [cut(factor * value + (1 - factor) * gray_of(pixel) for value in pixel) for pixel in before],
    }
    for function, values in expected.items():
        np.testing.assert_allclose(pixels(changed(function, factor)), values, atol=1e-12)
        np.testing.assert_allclose(pixels(changed(function, factor, np.float32)), values, atol=1e-6)


def test_gray_of_white_is_nearly_white():
    np.testing.assert_allclose(gray(np.ones((3, 2, 2))), 0.9999)
