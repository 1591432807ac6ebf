"""Curves are drawn where their values are, and PNG files hold the pixels they were made from."""

import struct
import zlib

import numpy as np
import pytest

from engine.metrics.results import Curve
from engine.observe.drawing import SIZE, draw, png, png_size


def decode(data: bytes) -> np.ndarray:
    """Reads a PNG file with 8 bits per colour and no filter, and checks its checksums."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        parts[kind], at = body, at + 12 + length
    width, height, depth, colours, *_ = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, colours) == (8, 2)
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


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
