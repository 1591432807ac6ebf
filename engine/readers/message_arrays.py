"""Converts decoded messages of ROS 2 and Protocol Buffers to examples, with the dtypes of their schemas.

The types come from the schema and not from the values, so that an empty list has the dtype and the structure of any
other.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example, Examples
from engine.data.text import stack_leaves

TEXT, BYTES = "text", "bytes"


class Field(NamedTuple):
    """A field of a message."""

    name: str
    kind: "str | tuple[Field, ...]"
    """Name of a dtype, "text", "bytes", or the fields of a message."""
    is_list: bool = False
    size: int | None = None
    """Number of elements of a list, if its type sets it."""
    number: int = 0
    """Number of the field in Protocol Buffers: schemas with other numbers are other schemas."""


def to_example(message: Any, fields: Sequence[Field]) -> dict[str, Example]:
    """Returns a message, an object with an attribute for each field, as a dict by field.

    Numbers become arrays of the dtype of the field, a list of numbers an array `[n]`, a message a dict, and a list of
    messages a dict of arrays `[n, ...]`.

    Raises:
        DataError: the messages of a list hold lists of different lengths.
    """
    return {field.name: _value(getattr(message, field.name), field) for field in fields}


def _value(value: Any, field: Field) -> Example:
    if not field.is_list:
        if not isinstance(field.kind, str):
            return to_example(value, field.kind)
        return value if field.kind in (TEXT, BYTES) else _numbers(value, field.kind)
    if isinstance(value, Mapping):  # a map of Protocol Buffers
        value = [SimpleNamespace(key=key, value=value[key]) for key in sorted(value)]
    if field.size is not None and len(value) != field.size:
        raise DataError(f"field {field.name} has {len(value)} elements instead of {field.size}. Record it again.")
    if not isinstance(field.kind, str):
        return _columns([to_example(element, field.kind) for element in value], field)
    if field.kind in (TEXT, BYTES):
        return stack_leaves(*value) if len(value) else _empty(field, ())
    return _numbers(value, field.kind)


def _numbers(value: Any, dtype: str) -> np.ndarray:
    if isinstance(value, bytes | bytearray | memoryview):
        return np.frombuffer(bytearray(value), np.uint8).astype(dtype, copy=False)
    if np.dtype(dtype).kind in "iu":  # the library of ROS 2 reads seconds as unsigned if their type is not in the log
        return np.array(value, np.uint64 if dtype == "uint64" else np.int64).astype(dtype)
    return np.array(value, dtype)


def _columns(rows: list[dict[str, Example]], field: Field) -> Examples:
    """Returns the messages of a list as arrays `[messages, ...]`."""
    if not rows:
        return _empty(field, ())
    try:
        return jax.tree.map(stack_leaves, *rows)
    except ValueError as error:
        raise DataError(
            f"the messages of field {field.name} hold lists of different lengths, which fit no array. Name a decoder "
            "of your own: decoders={...}."
        ) from error


def _empty(field: Field, shape: tuple[int, ...]) -> Examples:
    """Returns a list without elements, in a list of shape `shape` of such lists."""
    if field.is_list:
        shape = (*shape, field.size if shape and field.size is not None else 0)
    if not isinstance(field.kind, str):
        return {child.name: _empty(child, shape) for child in field.kind}
    return np.empty(shape, {TEXT: "U1", BYTES: "S1"}.get(field.kind, field.kind))
