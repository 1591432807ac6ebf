"""Curves are drawn where their values are, and PNG files hold the pixels they were made from."""

import numpy as np
import pytest

from engine.metrics.results import Curve
from engine.observe.drawing import SIZE, draw, png, png_size
from tests.observe.images import decode


def test_png_holds_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(decode(png(pixels)), pixels)
    assert png_size(png(pixels)) == (5, 7)


def test_grey_values_of_0_to_1_become_bytes():
    grey = decode(png(np.array([[0.0, 1.0], [np.nan, 2.0]])))
    assert grey[..., 0].tolist() == [[0, 255], [0, 255]]
    with pytest.raises(ValueError, match=r"an image of shape \[3\]"):
        png(np.zeros(3))


def blue(image):
    return np.argwhere(image[..., 0] < 100)


def test_curve_runs_from_its_first_to_its_last_point():
    marks = blue(draw(Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))))
    assert np.abs(marks.sum(1) - SIZE).max() <= 2  # from the lower left to the upper right
    assert len(marks) > 200


@pytest.mark.parametrize("x", [[], [0.5], [np.nan, 1.0], [3.0, 3.0]])
def test_degenerate_curves_are_drawn_without_a_warning(x):
    assert draw(Curve(np.array(x), np.array(x))).shape == (SIZE, SIZE, 3)
