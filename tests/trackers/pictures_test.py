"""Images, curves and histograms are drawn; other results are not."""

import numpy as np
import pytest

from engine.metrics.results import Bins, Curve, Image, Table
from engine.observe.drawing import SIZE, png, png_size
from engine.trackers.pictures import picture

DRAWN = [Bins(np.array([0.0, 1.0, 2.0]), np.array([3, 4])), Curve(np.array([0.0, 1.0]), np.array([1.0, 2.0]))]


@pytest.mark.parametrize("value", DRAWN)
def test_histograms_and_curves_are_drawn(value):
    data = picture(value)
    assert data is not None and png_size(data) == (SIZE, SIZE)


def test_images_are_encoded_and_other_results_are_not_drawn():
    pixels = np.zeros((2, 3), np.uint8)
    assert picture(Image(pixels)) == png(pixels)
    assert picture(1.0) is None and picture(Table({"a": [1]})) is None
