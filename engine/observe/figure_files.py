"""Writes the results that are files: images with a file name, as PNG, and the metrics of single examples."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.base.files import leftovers, remove, replacing
from engine.metrics.results import File, Image
from engine.observe.drawing import png

FIGURE = re.compile(r"\d+-example-\d+\.png")
"""Name of a figure of an evaluation: rank and example."""


def png_bytes(image: Image) -> bytes:
    """Returns an image as PNG."""
    return image.pixels if isinstance(image.pixels, bytes) else png(image.pixels)


def write_figures(folder: Path, results: Mapping[str, Any], step: int | None = None) -> None:
    """Writes each image with a file name into a folder, and other files beside it. May raise OSError.

    A file appears complete. Figures of examples replace all those that an earlier evaluation of the same step has left.

    Args:
        folder: folder of the figures.
        results: by full name, such as "heldout/figures/0".
        step: step of the results. The figures of an earlier evaluation are removed even if the results have none.
    """
    prefixes = {name.partition("/")[0] for name in results if "/" in name} if step is not None else ()
    written: dict[Path, set[str]] = {folder / prefix / str(step): set() for prefix in prefixes}
    for value in results.values():
        if isinstance(value, Image) and value.file:
            path = folder / value.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(png_bytes(value))
            if FIGURE.fullmatch(path.name):
                written.setdefault(path.parent, set()).add(path.name)
        if isinstance(value, File):
            _write_file(folder.parent, value)
    for parent, names in written.items():
        remove_figures(parent, FIGURE, names)


def _write_file(run: Path, file: File) -> None:
    """Writes a file of an evaluation, and removes those of other steps that have no checkpoint any more.

    The latest two steps stay: their checkpoints may still be being written, perhaps by another process.
    """
    path = run / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as opened:
        opened.write(file.content)
    steps = [int(other.stem) for other in path.parent.glob(f"*{path.suffix}") if other.stem.isdecimal()]
    for step in {*steps} - {int(path.stem), *sorted(steps)[-2:]}:
        if not (run / "checkpoints" / str(step)).is_dir():
            path.with_stem(str(step)).unlink(missing_ok=True)


def remove_figures(folder: Path, pattern: re.Pattern[str], kept: Collection[str]) -> None:
    """Removes the figures of a folder, if it exists, whose names match a pattern, except some. May raise OSError."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if pattern.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
    for name, path in leftovers(folder):
        if pattern.fullmatch(name):
            remove(path)
