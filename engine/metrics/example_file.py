"""The metrics of single examples of an evaluation as a Parquet file, which has what `compute` needs.

Columns: `example`, the index in the dataset; `slice:NAME`; `tag:NAME`, numbers or text; and `METRIC.FIELD` for each
array of a metric. An array with several dimensions for each example is a list of fixed size; its shape, the class of
the metric, its settings and the fingerprint of the dataset are in the metadata of the file. `pyarrow` writes and reads
it, the extra `parquet`.
"""

import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.base.errors import ConfigError, RunError, TaskError
from engine.metrics.metric import Metric, array_fields, settings
from engine.metrics.results import File
from engine.metrics.slices import Examples

FOLDER = "per_example"
"""Folder of the files in a run directory: per_example/EVALUATION/STEP.parquet."""
LARGEST_GIB = 4.0
"""Largest size of the arrays of a file."""
_EXAMPLE, _SLICE, _TAG, _VERSION = "example", "slice:", "tag:", 1


def path_of(evaluation: str, step: int) -> str:
    """Returns the path of a file in a run directory."""
    return f"{FOLDER}/{evaluation}/{step}.parquet"


def file_of(evaluation: str, step: int, found: Examples) -> dict[str, File]:
    """Returns the file as the result of an evaluation, by full name."""
    return {f"{evaluation}/{FOLDER}": File(path_of(evaluation, step), to_parquet(found))}


def pyarrow(field: str) -> ModuleType:
    """Returns the module pyarrow. Raises ConfigError if it is missing; `field` is the setting that needs it."""
    try:
        import pyarrow as found
        import pyarrow.parquet
    except ImportError as error:
        from engine.base.extras import install_command

        command = install_command("parquet")
        raise ConfigError(f"{field}: needs pyarrow, which is not installed: {command}.") from error
    return found


def check_storable(metrics: Mapping[str, Metric], examples: int, where: str, tags: int = 0) -> None:
    """Checks, before an evaluation, that the metrics of its examples can be stored.

    Args:
        metrics: the metrics of a batch; their arrays may be abstract, `[batch, ...]`.
        examples: number of examples.
        where: config section of the evaluation.
        tags: bytes of the tags of an example.

    Raises:
        ConfigError: pyarrow is missing, or a file would be larger than LARGEST_GIB.
        TaskError: a setting of a metric cannot be stored.
    """
    pyarrow(f"{where}.per_example")
    size = tags
    for name, metric in metrics.items():
        _about(name, metric, where)
        size += sum(4 * int(np.prod(getattr(metric, field).shape[1:])) for field, _ in array_fields(metric))
    if (gib := size * examples / 2**30) > LARGEST_GIB:
        raise ConfigError(
            f"{where}.per_example: found {examples:,} examples of {size:,} bytes, {gib:.1f} GiB. Allowed are "
            f"{LARGEST_GIB:g} GiB: evaluate fewer examples with {where}.data.limit, or return smaller metrics."
        )


def to_parquet(found: Examples) -> bytes:
    """Returns the content of a file."""
    arrow = pyarrow("per_example")
    columns: dict[str, Any] = {_EXAMPLE: found.indices}
    columns |= {f"{_SLICE}{name}": mask for name, mask in found.slices.items()}
    columns |= {f"{_TAG}{name}": _tag_column(arrow, values) for name, values in found.tags.items()}
    shapes: dict[str, list[int]] = {}
    for name, metric in found.metrics.items():
        for field, _ in array_fields(metric):
            x = np.asarray(getattr(metric, field))
            shapes[f"{name}.{field}"] = list(x.shape[1:])
            columns[f"{name}.{field}"] = _column(arrow, x)
    about = {name: _about(name, metric, "") for name, metric in found.metrics.items()}
    stored = {"version": _VERSION, "metrics": about, "shapes": shapes, "content": found.content}
    metadata = {"convoy": json.dumps(stored)}
    table = arrow.table(columns).replace_schema_metadata(metadata)
    arrow.parquet.write_table(table, file := io.BytesIO(), compression="zstd")
    return file.getvalue()


def read_parquet(path: Path) -> Examples:
    """Reads a file. Imports the classes of its metrics.

    Raises:
        ConfigError: pyarrow is missing.
        RunError: the file cannot be read, or a class of a metric cannot be imported.
    """
    arrow = pyarrow(str(path))
    try:
        table = arrow.parquet.read_table(path)
        stored = json.loads(table.schema.metadata[b"convoy"])
        about, shapes = stored["metrics"], stored["shapes"]
        arrays = {name: table[name] for name in table.column_names}
        indices = arrays[_EXAMPLE].to_numpy()
        masks = {n.removeprefix(_SLICE): x.to_numpy() for n, x in arrays.items() if n.startswith(_SLICE)}
        tags = {n.removeprefix(_TAG): _tag(x) for n, x in arrays.items() if n.startswith(_TAG)}
        metrics = {}
        for name, each in about.items():
            fields = {n.rpartition(".")[2]: n for n in shapes if n.rpartition(".")[0] == name}
            values = {field: _array(arrays[full], shapes[full]) for field, full in fields.items()}
            metrics[name] = _import(each["class"])(**values, **{key: _frozen(x) for key, x in each["settings"].items()})
    except (OSError, KeyError, TypeError, ValueError, ImportError, AttributeError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error
    return Examples(indices, masks, metrics, tags, stored.get("content", ""))


def _tag_column(arrow: ModuleType, values: np.ndarray) -> Any:
    return arrow.array(values.tolist(), arrow.string()) if values.dtype.kind == "U" else arrow.array(values)


def _tag(column: Any) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype.kind == "O" else values


def _column(arrow: ModuleType, x: np.ndarray) -> Any:
    if x.ndim == 1:
        return arrow.array(x)
    size = int(np.prod(x.shape[1:]))
    return arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(x).reshape(-1)), size)


def _array(column: Any, shape: list[int]) -> np.ndarray:
    if not shape:
        return column.to_numpy()
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)


def _about(name: str, metric: Metric, where: str) -> dict[str, Any]:
    """Returns the class of a metric and its settings, as JSON. Raises TaskError."""
    kind, values = type(metric), settings(metric)
    stored = {key: _thawed(value) for key, value in values.items()}
    try:
        same = {key: _frozen(value) for key, value in json.loads(json.dumps(stored)).items()} == values
    except (TypeError, ValueError, AttributeError, ImportError):
        same = False
    if not same or "<" in kind.__qualname__:
        raise TaskError(
            f"{where}.per_example: the metric {name!r} of the class {kind.__qualname__} cannot be stored. Its class "
            "must be on the level of a module, and its settings numbers, texts, functions of modules, or tuples."
        )
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "settings": stored}


def _thawed(value: Any) -> Any:
    """Returns a setting as JSON: tuples as lists, functions by their names."""
    if isinstance(value, tuple):
        return [_thawed(item) for item in value]
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return _import(value["function"]) if isinstance(value, dict) else value


def _import(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def slice_names(path: Path) -> list[str]:
    """Returns the slices of a file, without the metrics of its examples. Raises as `read_parquet`."""
    return [name.removeprefix(_SLICE) for name in _schema(path).names if name.startswith(_SLICE)]


def content_of(path: Path) -> str:
    """Returns the fingerprint of the dataset of a file; "" if it is not known. Raises as `read_parquet`."""
    stored = (_schema(path).metadata or {}).get(b"convoy", b"{}")
    try:
        return json.loads(stored).get("content", "")
    except (ValueError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _schema(path: Path) -> Any:
    arrow = pyarrow(str(path))
    try:
        return arrow.parquet.read_schema(path)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(f"{path}: cannot be read as the metrics of examples ({text}).")
