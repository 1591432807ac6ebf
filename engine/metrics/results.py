"""What `Metric.compute` and hooks may return, by name, and its form in files: numbers, arrays, tables, images and more.

Imports no JAX.
"""

import dataclasses
import io
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.base.errors import TaskError
from engine.base.formatting import aligned

MAX_NUMBERS = 4096  # largest size of an array in metrics.jsonl, and most rows of a table
_SHOWN = 16  # numbers of an array as text
_PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of a PNG file
CURVE_POINTS = 256  # points kept of a curve in metrics.jsonl and TensorBoard


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """An image for TensorBoard: `[height, width]` or `[height, width, 3]`, uint8 or 0..1, or the bytes of a PNG.

    With `file`, a path such as "night/7.png", it is also written below `figures/` in the run directory.
    """

    pixels: np.ndarray | bytes
    file: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, in order, such as recall and precision."""

    x: np.ndarray
    y: np.ndarray
    x_name: str = "x"
    y_name: str = "y"

    def thinned(self) -> "Curve":
        """Returns the curve with at most CURVE_POINTS of its points, evenly spaced along it."""
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        if len(x) <= CURVE_POINTS:
            return dataclasses.replace(self, x=x, y=y)
        length = np.nan_to_num(np.abs(np.diff(x)) / (np.ptp(x) or 1) + np.abs(np.diff(y)) / (np.ptp(y) or 1))
        along = np.concatenate([[0], np.cumsum(length)])
        chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS)).clip(0, len(x) - 1))
        return dataclasses.replace(self, x=x[chosen], y=y[chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """A histogram: `edges` `[bins + 1]` and `counts` `[bins]`."""

    edges: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table: name of a column -> its entries, which are numbers or text, as many in each column."""

    columns: Mapping[str, Sequence[float | str]]
    title: str = ""
    """What its rows are, such as "smallest accuracy first"; printed after its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class File:
    """A file below the run directory, which appears nowhere else: its path and its content."""

    path: str
    content: bytes


type Result = float | np.ndarray | Image | Curve | Bins | Table | File
"""One named result. An array has at least one dimension."""


def named_results(name: str, value: object, where: str) -> dict[str, Result]:
    """Returns the results of one metric by full name: the entries of a dict are "<name>/<key>".

    Args:
        name: name of the metric; also the full name of an entry whose key is "".
        value: what `compute` of the metric has returned, or what a hook has returned under this name.
        where: the method that returned it, for errors.

    Raises:
        TaskError: the value, or an entry, is of another type, or two entries have the same name.
    """
    if not isinstance(value, Mapping):
        return {name: _result(name, value, where)}
    found: dict[str, Result] = {}
    for key, entry in value.items():
        for full, result in named_results(f"{name}/{key}" if str(key) else name, entry, where).items():
            if full in found:
                raise TaskError(f"{where} returned two values named {full!r}. Rename one of them.")
            found[full] = result
    return found


def _result(name: str, value: Any, where: str) -> Result:
    if isinstance(value, Image | Curve | Bins | Table):
        _check_shape(value, f"{where} returned", name)
        return value
    if callable(getattr(value, "savefig", None)):  # a figure of matplotlib
        value.savefig(file := io.BytesIO(), format="png")
        return Image(file.getvalue())
    if isinstance(value, numbers.Real):
        return float(value)
    array = np.asarray(value) if isinstance(value, list | tuple) or hasattr(value, "__array__") else np.array(None)
    if array.dtype.kind not in "biuf":
        raise TaskError(
            f"{where} returned a {type(value).__name__} as {name!r}. Allowed: a number, an array of numbers, "
            "an Image, a Curve, Bins, a Table, a figure of matplotlib, and dicts of them."
        )
    return array if array.ndim else float(array)


def _check_shape(value: Image | Curve | Bins | Table, where: str, name: str) -> None:
    """Raises TaskError for a value that cannot be drawn, since its drawing would fail later, in another thread."""
    if isinstance(value, Curve):
        x, y = np.shape(value.x), np.shape(value.y)
        if len(x) != 1 or x != y:
            raise TaskError(f"{where} a Curve of x {list(x)} and y {list(y)} as {name!r}. Allowed: [points] for both.")
    elif isinstance(value, Bins):
        edges, counts = np.shape(value.edges), np.shape(value.counts)
        if len(counts) != 1 or edges != (counts[0] + 1,):
            raise TaskError(
                f"{where} Bins of edges {list(edges)} and counts {list(counts)} as {name!r}. Allowed: [bins + 1] and "
                "[bins]."
            )
    elif isinstance(value, Table):
        lengths = {name: len(column) for name, column in value.columns.items()}
        entries = [entry for column in value.columns.values() for entry in column]
        if len(set(lengths.values())) > 1 or not all(isinstance(entry, numbers.Real | str) for entry in entries):
            raise TaskError(
                f"{where} a Table with columns of the lengths {lengths} as {name!r}. Allowed: columns of one length, "
                "with numbers and text."
            )
    elif isinstance(value.pixels, bytes):
        if not value.pixels.startswith(_PNG):
            raise TaskError(f"{where} an Image of bytes that are no PNG file as {name!r}. Save it as PNG.")
    else:
        shape = np.shape(value.pixels)
        is_gray, is_rgb = len(shape) == 2, len(shape) == 3 and shape[2] == 3
        if 0 in shape or not (is_gray or is_rgb):
            raise TaskError(
                f"{where} an Image of shape {list(shape)} as {name!r}. Allowed: [height, width] and [height, width, 3]."
            )


def scalars(results: Mapping[str, Any]) -> dict[str, float]:
    """Returns the results that are single numbers."""
    return {name: float(value) for name, value in results.items() if isinstance(value, numbers.Real)}


def json_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results as values of JSON, without images and without arrays and tables that are too large."""
    found = {name: _json_value(value) for name, value in results.items()}
    return {name: value for name, value in found.items() if value is not None}


def result_text(value: Any) -> str:
    """Returns a number, a table, or an array of at most 16 numbers, with six significant digits; else ""."""
    if isinstance(value, Table):
        return table_text(value)
    if isinstance(value, numbers.Real):
        return f"{value:.6g}"
    if isinstance(value, np.ndarray) and value.size <= _SHOWN:
        return np.array2string(value.astype(np.float64), precision=6, separator=", ", max_line_width=10**6).replace(
            "\n", ""
        )
    return ""


def titled(name: str, value: Any) -> str:
    """Returns the name of a result, with the title of a table."""
    return f"{name} ({value.title})" if isinstance(value, Table) and value.title else name


def table_text(table: Table, lines: int = 10) -> str:
    """Returns a table as indented lines, each after a line break; at most `lines` rows, and how many more it has."""
    columns = {name: [name, *map(_cell, column)] for name, column in table.columns.items()}
    rows = max((len(column) - 1 for column in columns.values()), default=0)
    found = aligned([[column[row] for column in columns.values()] for row in range(min(rows, lines) + 1)], right=True)
    more = [f"and {rows - lines} more"] if rows > lines else []
    return "".join(f"\n  {line}" for line in (*found, *more))


def _cell(entry: float | str) -> str:
    return entry if isinstance(entry, str) else f"{entry:.6g}" if isinstance(entry, float) else str(entry)


def too_large(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of the arrays and tables that `json_values` leaves out."""
    return [name for name, value in results.items() if _size(value) > MAX_NUMBERS]


def _json_value(value: Any) -> Any:
    if isinstance(value, Image | File) or _size(value) > MAX_NUMBERS:
        return None
    if isinstance(value, Table):
        return {name: list(column) for name, column in value.columns.items()}
    if isinstance(value, Curve):
        curve = value.thinned()
        return {curve.x_name: curve.x.tolist(), curve.y_name: curve.y.tolist()}
    if isinstance(value, Bins):
        return {"edges": np.asarray(value.edges).tolist(), "counts": np.asarray(value.counts).tolist()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _size(value: Any) -> int:
    if isinstance(value, Table):
        return max(map(len, value.columns.values()), default=0)  # rows
    return value.size if isinstance(value, np.ndarray) else len(value.counts) if isinstance(value, Bins) else 1
