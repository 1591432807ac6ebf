"""Pixels of images of every mode and depth, compared with OpenCV and Pillow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row
from engine.readers import DecodeImage

GOLDEN_IMAGES = 2


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of file."""
    yield from compare_files(environment, {"sets": list(range(cases))}, compared, GOLDEN_IMAGES)


def compared(folder: Path) -> Iterator[Row]:
    """Yields the rows of a folder in which the outside program has written images and their pixels."""
    sets, kinds = exchanged(folder)
    with np.load(folder / "images.npz") as stored:
        for kind in kinds:
            largest = 0.0
            for number in sets:
                wanted, encoded = stored[f"{number} {kind} pixels"], stored[f"{number} {kind} file"]
                decode = DecodeImage(gray=wanted.ndim == 2, dtype=wanted.dtype.name)  # pyright: ignore[reportArgumentType]
                largest = max(largest, _difference(decode(encoded), wanted if wanted.ndim == 3 else wanted[:, :, None]))
            yield Row(kind, len(sets), largest)


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - wanted).max())
