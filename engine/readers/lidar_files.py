"""Reads the binary files of points that nuScenes and KITTI use: float32 numbers without a header."""

import numpy as np

from engine.base.errors import DataError
from engine.storage.mounts import shown


def read_points(path: str, numbers: int) -> np.ndarray:
    """Returns the points of a file, float32 `[points, numbers]`. Raises DataError if the file is missing or cut off."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}). Copy the file again.") from error
    if not data or len(data) % (4 * numbers):
        raise DataError(
            f"{shown(path)}: has {len(data)} bytes, which are no points of {numbers} numbers each. Copy the file again."
        )
    return np.frombuffer(bytearray(data), "<f4").reshape(-1, numbers)
