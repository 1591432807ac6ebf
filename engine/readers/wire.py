"""Reads the wire format of Protocol Buffers, without a schema and without the protobuf package.

A message is a sequence of fields. A field is a varint `number * 8 + type` and a value. The format is documented at
https://protobuf.dev/programming-guides/encoding. Positions are offsets in the bytes of the whole record.
"""

from collections.abc import Iterator

import numpy as np

from engine.base.errors import DataError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Types of values on the wire; 3 and 4, groups, are from before proto2 and not supported."""
LONGEST = 10  # bytes of a varint, which holds 64 bits
DAMAGED = "The record is damaged, or of another format."

type Field = tuple[int, int, int, int]
"""(number, type, a, b): the value is the integer a of a varint, else the bytes from a to b."""


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yields the fields of the message in `data[start:end]`.

    Raises:
        DataError: the bytes are not a message, or not a complete one.
    """
    end = len(data) if end is None else end
    while start < end:
        tag = data[start]
        begin, start = start, start + 1
        if tag >= 0x80:
            tag, start = varint(data, begin, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise DataError(f"byte {begin}: there is no field 0. {DAMAGED}")
        if kind == VARINT or kind == BYTES:  # noqa: SIM109, the fastest form
            if start < end and (size := data[start]) < 0x80:
                start += 1
            else:
                size, start = varint(data, start, end)
            if kind == VARINT:
                yield number, kind, size, start
                continue
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise DataError(f"byte {begin}: field {number} has type {kind}. {DAMAGED}")
        if size > end - start:
            raise DataError(
                f"byte {begin}: field {number} of {size} bytes is longer than the rest of its message, "
                f"{end - start} bytes. {DAMAGED}"
            )
        yield number, kind, start, start + size
        start += size


def varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Returns the unsigned integer at `start` and the position after it. Raises DataError if it is incomplete."""
    value, shift = 0, 0
    for position in range(start, min(end, start + LONGEST)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    raise DataError(f"byte {start}: a number is incomplete. {DAMAGED}")


def signed(value: int) -> int:
    """Returns a varint as a signed integer of 64 bits (int32, int64 and enums on the wire)."""
    return value - (1 << 64) if value >> 63 else value


def text(data: bytes, start: int, end: int) -> str:
    """Returns text. Raises DataError if it is not UTF-8."""
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"byte {start}: text is not UTF-8 ({error.reason}).") from error


def varints(data: bytes, start: int, end: int) -> np.ndarray:
    """Returns packed varints as int64 `[values]`. Raises DataError if the last is incomplete, or one is too long."""
    found = np.frombuffer(data, np.uint8, end - start, start)
    if not found.size:
        return np.zeros(0, np.int64)
    last = found < 0x80
    if last.all():
        return found.astype(np.int64)
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    if not last[-1] or (ends - starts).max() > LONGEST:
        raise DataError(f"byte {start}: a packed number is incomplete. {DAMAGED}")
    shift = 7 * (np.arange(found.size) - np.repeat(starts, ends - starts)).astype(np.uint64)
    return np.add.reduceat((found & np.uint8(0x7F)).astype(np.uint64) << shift, starts).view(np.int64)


def integers(data: bytes, start: int, end: int, number: int) -> np.ndarray:
    """Returns a repeated field of varints, packed or not, of the message in `data[start:end]`, as int64 `[values]`."""
    parts: list[np.ndarray] = []
    for found, kind, a, b in fields(data, start, end):
        if found == number and kind == BYTES:
            parts.append(varints(data, a, b))
        elif found == number and kind == VARINT:
            parts.append(np.array([signed(a)], np.int64))
    return _joined(parts, np.dtype(np.int64))


def numbers(data: bytes, start: int, end: int, number: int, dtype: str) -> np.ndarray:
    """Returns a repeated field of float ("<f4") or double ("<f8"), packed or not, of the message in `data[start:end]`.

    Raises:
        DataError: the bytes of a packed field are not a multiple of the size of a value.
    """
    parts: list[np.ndarray] = []
    size = np.dtype(dtype).itemsize
    for found, kind, a, b in fields(data, start, end):
        if found == number and kind in (BYTES, FIXED64 if size == 8 else FIXED32):
            if (b - a) % size:
                raise DataError(f"byte {a}: {b - a} bytes are no packed numbers of {size} bytes.")
            parts.append(np.frombuffer(data, dtype, (b - a) // size, a))
    return _joined(parts, np.dtype(dtype))


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
