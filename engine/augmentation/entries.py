"""Reads and replaces the entries of an example by path, such as `calibration/CAM_FRONT/to_ego`.

An example is a dict of dicts and arrays. Replacing an entry copies the dicts on its path, and no array.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example


def entry(example: Example, path: str, where: str) -> Any:
    """Returns the entry of an example at a path; `where` names its reader in the error.

    Raises:
        DataError: the example has no such entry.
    """
    found = example
    for part in path.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            names = sorted(paths(example))
            shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
            near = did_you_mean(path, names)
            raise DataError(f"{where}: the example has no entry {path!r}. It has {shown or 'none'}.{near}")
        found = found[part]
    return found


def paths(example: Example, prefix: str = "") -> list[str]:
    """Returns the paths of all entries of an example."""
    if not isinstance(example, Mapping):
        return [prefix.removesuffix("/")] if prefix else []
    return [path for name, inner in example.items() for path in paths(inner, f"{prefix}{name}/")]


def replaced(example: Example, changes: Mapping[str, Any]) -> Example:
    """Returns an example with other values at some paths; what is not changed is not copied."""
    if not changes:
        return example
    found = dict(example)
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        first, _, rest = path.partition("/")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            found[first] = value
    for first, nested in inner.items():
        found[first] = replaced(found.get(first, {}), nested)
    return found


def array(example: Example, path: str, where: str, shape: str, columns: tuple[int, ...], *, least: int = 1) -> Any:
    """Returns an entry that is a floating-point array.

    Args:
        example: the example.
        path: path of the entry.
        where: name of its reader in the error.
        shape: allowed shape in the error, such as "[..., points, 3]".
        columns: the last dimensions; -n for at least n.
        least: number of dimensions that the array must have.

    Raises:
        DataError: the entry is missing, or has another shape or dtype.
    """
    found = entry(example, path, where)
    fits = isinstance(found, np.ndarray) and found.dtype.kind == "f" and found.ndim >= max(least, len(columns))
    if fits and columns:
        pairs = zip(found.shape[-len(columns) :], columns, strict=True)
        fits = all(size == allowed or (allowed < 0 and size >= -allowed) for size, allowed in pairs)
    if not fits:
        raise DataError(f"{where}: {path} is {described(found)}, allowed is a floating-point array {shape}.")
    return found


def mask(example: Example, path: str, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an entry that is a mask of a shape. Raises DataError if it is missing or another array."""
    found = entry(example, path, where)
    if not isinstance(found, np.ndarray) or found.dtype != bool or found.shape != shape:
        raise DataError(f"{where}: {path} is {described(found)}, allowed is bool{list(shape)}.")
    return found


def described(found: Any) -> str:
    """Returns the dtype and the shape of an entry as text."""
    if isinstance(found, np.ndarray | np.generic):
        return f"{found.dtype}{list(found.shape)}"
    return f"a {type(found).__name__}"
