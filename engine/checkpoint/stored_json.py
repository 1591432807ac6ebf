"""Reads the JSON files of a step, which another program may have written: the position in the data, and the config."""

import json
from pathlib import Path

from engine.config.text_file import read_text


def position(path: Path) -> dict:
    """Returns a position in the data: numbers, the skipped batches, and the sums of an unfinished row of metrics.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    found = _read(path)
    skipped, row = found.get("skipped", []), found.get("row", {})
    numbers = [value for name, value in found.items() if name not in ("skipped", "row")]
    pairs = list(row.values()) if isinstance(row, dict) else [""]
    if not all(map(_are_numbers, (skipped, numbers, *pairs))) or any(len(pair) != 2 for pair in pairs):
        raise ValueError("is not a position in the data")
    return found


def config_text(path: Path) -> str:
    """Returns the text of a config, which is stored as a list of lines. Raises as `position`."""
    lines = _read(path).get("lines")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("is not the text of a config")
    return "\n".join(lines)


def _read(path: Path) -> dict:
    try:
        found = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)
