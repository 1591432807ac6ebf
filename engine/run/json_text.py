"""Values of a run as JSON that every reader accepts.

Owns: `dumps`. JSON has no NaN and no infinity, so they are written as the text "NaN", "Infinity" and "-Infinity":
the line stays valid, a null would not tell which it was, and `float(text)` gives the number back.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from engine.config.errors import RunError


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Returns `value` as JSON text.

    Args:
        value: mappings, lists, tuples, text, numbers, None, and arrays (of NumPy or JAX; they become numbers and
            nested lists). A float32 keeps its exact value.
        indent: spaces a level, None for one line.

    Raises:
        RunError: something else is in it; the sentence says where.
    """
    return json.dumps(_plain(value, ""), allow_nan=False, indent=indent)


def _plain(value: Any, where: str) -> Any:
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
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    raise RunError(
        f"{where or 'value'}: a {type(value).__name__} cannot be written as JSON. "
        "Allowed: numbers, arrays, text, None, and lists and dicts of them."
    )
