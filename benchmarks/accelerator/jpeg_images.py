"""Images that are stored as JPEG and decoded when they are read. This file imports numpy and Pillow only."""

import io
import os

import numpy as np
from PIL import Image  # pyright: ignore[reportMissingImports]

from benchmarks.accelerator import first_weights


def cores() -> int:
    """Returns the number of cores that this process may use, at most 16."""
    return min(16, len(os.sched_getaffinity(0)))


class JpegImages:
    """Images of `size` pixels a side, decoded and cropped from larger JPEG files in memory: a source of the engine.

    Args:
        count: number of images; every file serves several of them.
        size: pixels of a side.
        files: number of files.
    """

    def __init__(self, count: int, size: int, files: int = 64):
        self.count, self.size = count, size
        side = size + size // 7
        noise = first_weights.random_bits("jpeg", files * 16 * 16) % 256
        self.files = []
        for pixels in noise.astype(np.uint8).reshape(files, 16, 16):
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((side, side)).convert("RGB").save(buffer, "JPEG", quality=90)
            self.files.append(buffer.getvalue())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        with Image.open(io.BytesIO(self.files[index % len(self.files)])) as image:
            pixels = np.asarray(image.convert("L"))
        first = index % (len(pixels) - self.size + 1)
        return {
            "image": pixels[first : first + self.size, first : first + self.size],
            "label": np.asarray(index % 10, np.int32),
        }
