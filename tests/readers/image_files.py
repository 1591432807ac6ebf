"""Images for tests."""

import io

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns smooth pixels, uint8 `[height, width, 3]`, which JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((seed + 1 + n) * (x / width + n * y / height)) for n in range(3)]
    return np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str, **settings) -> bytes:
    """Returns the file of an image, written by Pillow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **settings)
    return out.getvalue()
