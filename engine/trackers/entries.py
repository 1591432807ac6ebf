"""Reads the rows of `metrics.jsonl` as entries for a tracker: tag -> value, at a step and a time.

The tags are those of TensorBoard (`observe/tensorboard.py`): `train/loss`, `system/step_time_s`, `heldout/accuracy`.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics.results import Bins, Curve, File, Image, Result, Table
from engine.observe.figure_files import FIGURE
from engine.observe.tensorboard import ROW_KEYS, tag_of

LONGEST_LINE = 64 << 20  # bytes; a line holds at most some thousand numbers for each metric
_RICH = Image | Bins | Curve | Table | np.ndarray

type Key = tuple[int, float]
"""Step and time of a row, which no other row of a run shares."""


@dataclass(frozen=True)
class Entry:
    """The values of one row.

    Attributes:
        step: completed updates.
        time: when the row was written, in seconds since 1970.
        values: tag -> value.
    """

    step: int
    time: float
    values: Mapping[str, Result]

    @property
    def numbers(self) -> dict[str, float]:
        """The values that are single numbers, also those that are not finite."""
        return {tag: float(value) for tag, value in self.values.items() if isinstance(value, int | float)}

    @property
    def finite(self) -> dict[str, float]:
        """The values that are single finite numbers."""
        return {tag: value for tag, value in self.numbers.items() if math.isfinite(value)}


def rich_values(row: Mapping[str, Any]) -> dict[str, Result]:
    """Returns the values of a row that its line does not hold, or not in full: images, curves, tables and others."""
    return {name: value for name, value in row.items() if isinstance(value, _RICH)}


def key_of(row: Mapping[str, Any]) -> Key:
    """Returns what tells a row from every other row of its run."""
    return int(row["step"]), float(row["time"])


@dataclass(frozen=True)
class Lines:
    """Some lines of a file: their entries, where the next line begins, and how many lines are damaged."""

    entries: list[Entry]
    end: int
    damaged: int = 0


def read_entries(
    path: Path, offset: int, figures: Path, rich: Callable[[Key], Mapping[str, Result] | None], count: int
) -> Iterator[Lines]:
    """Yields the complete lines of a file from an offset on, at most `count` at once.

    Args:
        path: `metrics.jsonl`.
        offset: where the first line begins.
        figures: the folder of the run's figures, of which an entry has those of its step.
        rich: returns the values of a row that its line does not hold; None if they are not known.
        count: lines at once.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        while True:
            entries: list[Entry] = []
            damaged, begin = 0, offset
            for _ in range(count):
                line = file.readline(LONGEST_LINE)
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                entry = _entry(line, figures, rich)
                entries += [] if entry is None else [entry]
                damaged += entry is None
            if offset == begin:
                return
            yield Lines(entries, offset, damaged)


def _entry(line: bytes, figures: Path, rich: Callable[[Key], Mapping[str, Result] | None]) -> Entry | None:
    """Returns the entry of a line; None for a damaged one."""
    try:
        row = json.loads(line)
        step, time = key_of(row)
    except (ValueError, KeyError, TypeError):
        return None
    values = {name: _result(value) for name, value in row.items() if name not in ROW_KEYS}
    more = rich((step, time))
    values |= _stored_figures(figures, step, values) if more is None else more
    of_training = "batch" in row
    found = {tag_of(name, of_training): value for name, value in values.items() if value is not None}
    return Entry(step, time, {tag: value for tag, value in found.items() if not isinstance(value, File)})


def _result(value: Any) -> Result | None:
    """Returns the result that a value of a line describes; None for one that no tracker shows."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return float(value) if value in ("NaN", "Infinity", "-Infinity") else None
    if isinstance(value, list):
        return np.asarray(value, np.float64) if _are_numbers(value) else None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if value.keys() == {"edges", "counts"} and len(value["edges"]) == len(value["counts"]) + 1:
            return Bins(np.asarray(value["edges"]), np.asarray(value["counts"]))
        return Table(value) if len({len(column) for column in value.values()}) == 1 else None
    return None


def _are_numbers(values: list[Any]) -> bool:
    return all(_are_numbers(v) if isinstance(v, list) else isinstance(v, int | float) for v in values)


def _stored_figures(figures: Path, step: int, values: Mapping[str, Any]) -> dict[str, Result]:
    """Returns the figures of the evaluations and hooks of a row, by the names that they have in a row."""
    found: dict[str, Result] = {}
    for prefix in {name.partition("/")[0] for name in values if "/" in name}:
        folder = figures / prefix / str(step)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if FIGURE.fullmatch(path.name):
                rank = int(path.name.partition("-")[0])
                found[f"{prefix}/figures/{rank}"] = Image(path.read_bytes(), f"{prefix}/{step}/{path.name}")
    return found
