"""Reads the JSON files of a step, which another program may have written: the position in the data, and the config."""

from pathlib import Path

from engine.base import json_text

_POSITION = {"skipped?": [int], "row?": {str: (float, float)}, "streams?": {str: (int, object)}, str: float}


def position(path: Path) -> dict:
    """Returns a position in the data.

    It holds numbers, the skipped batches, the sums of an unfinished row of metrics, and the marks of streams: shard ->
    (number of an item, position in the shard). A sum may be NaN.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    return json_text.read(path, _POSITION, constants=True)


def config_text(path: Path) -> str:
    """Returns the text of a config, which is stored as a list of lines. Raises as `position`."""
    return "\n".join(json_text.read(path, {"lines": [str]})["lines"])
