"""JSON text of a run's values, valid for every JSON reader.

JSON has no NaN and no infinity, so they are written as the text "NaN", "Infinity" and "-Infinity". The line stays
valid, and `float(text)` returns the number. A null would not distinguish them.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime

from engine.base.errors import RunError
from engine.base.types import Json


def now() -> str:
    """Returns the time as ISO text in UTC: `2025-01-31T12:00:00.123+00:00`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def dumps(value: object, *, indent: int | None = None) -> str:
    """Returns `value` as JSON text.

    Args:
        value: mappings, lists, tuples, text, numbers, None, and arrays (of NumPy or JAX; they become numbers and
            nested lists). A float32 keeps its exact value.
        indent: spaces per level, None for one line.

    Raises:
        RunError: it contains a value of another type; the text names its path.
    """
    return json.dumps(_plain(value, ""), allow_nan=False, indent=indent)


def _plain(value: object, where: str) -> Json:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if (to_list := getattr(value, "tolist", None)) is not None:
        return _plain(to_list(), where)
    raise RunError(
        f"{where or 'value'}: a {type(value).__name__} cannot be written as JSON. "
        "Allowed: numbers, arrays, text, None, and lists and dicts of them."
    )
