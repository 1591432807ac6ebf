"""Draws curves without a plotting library, and encodes images as PNG (RFC 2083)."""

import struct
import zlib

import numpy as np

from engine.metrics.results import Curve

SIZE = 256  # pixels of each side of a curve's image
_MARGIN = 8  # white border
_LINES = 4  # intervals between the lines of the grid
_GRID, _INK = (225, 225, 225), (31, 87, 164)


def draw(curve: Curve) -> np.ndarray:
    """Returns a curve as uint8 `[SIZE, SIZE, 3]`, over a grid from its smallest to its largest values.

    An axis whose values are all within 0..1 shows 0..1.
    """
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    span = SIZE - 2 * _MARGIN - 1
    for i in range(_LINES + 1):
        at = _MARGIN + round(i * span / _LINES)
        image[at, _MARGIN : _MARGIN + span + 1] = image[_MARGIN : _MARGIN + span + 1, at] = _GRID
    thin = curve.thinned()
    keep = np.isfinite(thin.x) & np.isfinite(thin.y)
    x, y = (_MARGIN + span * _share(values[keep]) for values in (thin.x, thin.y))
    if len(x) == 1:
        x, y = np.repeat(x, 2), np.repeat(y, 2)
    for k in range(len(x) - 1):
        count = int(2 * max(abs(x[k + 1] - x[k]), abs(y[k + 1] - y[k]))) + 2
        columns = np.linspace(x[k], x[k + 1], count).round().astype(int)
        rows = SIZE - 1 - np.linspace(y[k], y[k + 1], count).round().astype(int)
        for shift in (0, 1):
            image[rows - shift, columns] = image[rows, columns - shift] = _INK
    return image


def _share(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return values
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return (values - low) / ((high - low) or 1)


def png(pixels: np.ndarray) -> bytes:
    """Returns the PNG file of an image `[height, width]` or `[height, width, 3]`, uint8 or 0..1.

    Raises:
        ValueError: another shape.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an image of shape {list(pixels.shape)}. Allowed: [height, width], [height, width, 3].")
    height, width = pixels.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def png_size(data: bytes) -> tuple[int, int]:
    """Returns height and width of a PNG file."""
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
