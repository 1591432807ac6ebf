"""Writes the images among results that have a file name as PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.metrics.results import Image
from engine.observe.drawing import png


def png_bytes(image: Image) -> bytes:
    """Returns an image as PNG."""
    return image.pixels if isinstance(image.pixels, bytes) else png(image.pixels)


def write_figures(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes each image with a file name into a folder; creates it if there is one. May raise OSError."""
    for value in results.values():
        if isinstance(value, Image) and value.file:
            path = folder / value.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(value))
