"""Reads many messages of one type at once, such as the states of all agents, as one array for each field.

A scene of Waymo has 20,000 and more of them, which take half a second one by one. Messages of the same length mostly
have the same fields at the same places: one of them is read field by field, the others by slices of bytes.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from engine.readers import wire

DOUBLE, FLOAT, INTEGER, BOOL = "<f8", "<f4", "<i8", "?"
"""Types of fields: dtypes of the arrays; integers and bools are varints."""
_KINDS = {DOUBLE: wire.FIXED64, FLOAT: wire.FIXED32, INTEGER: wire.VARINT, BOOL: wire.VARINT}

type Span = tuple[int, int]
"""First byte of a message and the byte after its last."""


class _Place(NamedTuple):
    """Where messages of one length hold the value of a field, from the start of the message."""

    number: int
    begin: int
    end: int


def spans(data: bytes, start: int, end: int, number: int) -> list[Span]:
    """Returns where the messages of a repeated field lie."""
    return [(a, b) for found, kind, a, b in wire.fields(data, start, end) if found == number and kind == wire.BYTES]


def columns(data: bytes, messages: Iterable[Span], dtypes: Mapping[int, str]) -> dict[int, np.ndarray]:
    """Returns the fields of messages, as number -> values `[messages]`; a missing field has the value 0.

    Args:
        data: the record that contains the messages.
        messages: where they lie.
        dtypes: number -> type of each field to read.

    Raises:
        DataError: a message is damaged.
    """
    where = np.array(list(messages), np.int64).reshape(-1, 2)
    found = {number: np.zeros(len(where), dtype) for number, dtype in dtypes.items()}
    content = np.frombuffer(data, np.uint8)
    lengths = where[:, 1] - where[:, 0]
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        others = _read_alike(data, content, rows, where, dtypes, found)
        for row in others:
            _read_one(data, row, where, dtypes, found)
    return found


def _read_one(
    data: bytes, row: int, where: np.ndarray, dtypes: Mapping[int, str], found: dict[int, np.ndarray]
) -> list[_Place] | None:
    """Reads one message; returns the places of its fields, or None if one of them has no fixed size."""
    start, end = where[row].tolist()
    places: list[_Place] | None = []
    for number, kind, a, b in wire.fields(data, start, end):
        if kind == wire.BYTES or (kind == wire.VARINT and a > 0x7F):
            places = None
        elif places is not None:
            places.append(_Place(number, (b - 1 if kind == wire.VARINT else a) - start, b - start))
        if _KINDS.get(dtypes.get(number, "")) == kind:
            value = wire.signed(a) if kind == wire.VARINT else np.frombuffer(data, dtypes[number], 1, a)[0]
            found[number][row] = value
    return places


def _read_alike(
    data: bytes,
    content: np.ndarray,
    rows: np.ndarray,
    where: np.ndarray,
    dtypes: Mapping[int, str],
    found: dict[int, np.ndarray],
) -> np.ndarray:
    """Reads those of the messages of one length that are like the first of them; returns the other rows."""
    places = _read_one(data, int(rows[0]), where, dtypes, found)
    if places is None or len(rows) == 1:
        return rows[1:]
    length = int(where[rows[0], 1] - where[rows[0], 0])
    messages = content[where[rows, :1] + np.arange(length)]  # [rows, length]
    is_tag = np.ones(length, bool)
    alike = np.ones(len(rows), bool)
    for place in places:
        is_tag[place.begin : place.end] = False
        if place.end - place.begin == 1:
            alike &= messages[:, place.begin] < 0x80
    alike &= (messages[:, is_tag] == messages[0, is_tag]).all(axis=1)
    for place in places:
        dtype = dtypes.get(place.number)
        size = {DOUBLE: 8, FLOAT: 4, INTEGER: 1, BOOL: 1, None: 0}[dtype]
        if dtype is not None and size == place.end - place.begin:
            values = np.ascontiguousarray(messages[alike, place.begin : place.end])
            found[place.number][rows[alike]] = (values if size == 1 else values.view(dtype))[:, 0]
    return rows[~alike]
