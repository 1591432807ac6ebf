"""Reads the JSON files of a step, which another program may have written: the position in the data, and the config."""

import json
from pathlib import Path

from engine.base.files import read_text


def position(path: Path) -> dict:
    """Returns a position in the data.

    It holds numbers, the skipped batches, the sums of an unfinished row of metrics, and the marks of streams: shard ->
    (number of an item, position in the shard).

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    found = _read(path)
    skipped, row, streams = found.get("skipped", []), found.get("row", {}), found.get("streams", {})
    numbers = [value for name, value in found.items() if name not in ("skipped", "row", "streams")]
    pairs = list(row.values()) if isinstance(row, dict) else [""]
    marks = list(streams.values()) if isinstance(streams, dict) else [""]
    if any(not isinstance(mark, list) or len(mark) != 2 or type(mark[0]) is not int for mark in marks):
        raise ValueError("is not a position in the data")
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
