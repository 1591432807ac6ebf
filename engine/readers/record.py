"""Encodes one example as bytes (a record), and decodes it. Unlike unpickling, decoding runs no code from the file.

A record is `CVR1`, the length of its header (uint32), the header, and the bytes of the arrays, each at a multiple of 8
bytes; all numbers are little-endian. The header is the tree as JSON: `{"dict": {name: ...}}`, `{"list": [...]}`,
`{"tuple": [...]}`, null, `[dtype, shape]` for an array, or `{"str": n}` and `{"bytes": n}` for text of n bytes (UTF-8),
in the order of the arrays.
"""

import functools
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.base.errors import DataError
from engine.data.examples import NUMERIC_KINDS, Example, check_numbers

MAGIC = b"CVR1"
ALIGNMENT = 8  # bytes


def encode(example: Example, where: str) -> bytes:
    """Returns the record of an example.

    Args:
        example: dicts with string keys, lists, tuples and None, of numpy arrays, numbers, str and bytes.
        where: name of the example in error texts.

    Raises:
        DataError: the example holds something else; the text names its path.
    """
    arrays: list[np.ndarray] = []
    header = json.dumps(_describe(example, where, arrays), separators=(",", ":")).encode()
    start = struct.calcsize("<4sI")
    parts = [struct.pack("<4sI", MAGIC, len(header)), header, _padding(start + len(header))]
    for array in arrays:
        parts += [array.tobytes(), _padding(array.nbytes)]
    return b"".join(parts)


def decode(record: bytes) -> Example:
    """Returns the example of a record; its arrays are read-only views of the record.

    Raises:
        DataError: the bytes are not a record, or not a complete one.
    """
    if record[:4] != MAGIC or len(record) < 8:
        raise DataError("This record was not written by convoy. Write the file with `convoy data write`.")
    end = 8 + struct.unpack_from("<I", record, 4)[0]
    build, size = _layout(record[8:end])
    start = end + -end % ALIGNMENT
    if len(record) != start + size:
        raise DataError(
            f"The record has {len(record)} bytes, but its header says {start + size}. Write the file again."
        )
    return build(record, start)


def _describe(node: Any, where: str, arrays: list[np.ndarray]) -> Any:
    """Returns the header entry of a node and appends the arrays of the node to `arrays`."""
    if node is None:
        return None
    if type(node) is dict:
        if odd := [key for key in node if not isinstance(key, str)]:
            raise DataError(f"{where}: key {odd[0]!r} is not a string. Records hold dicts with string keys.")
        return {"dict": {key: _describe(node[key], f"{where}/{key}", arrays) for key in sorted(node)}}
    if type(node) in (list, tuple):
        return {type(node).__name__: [_describe(child, f"{where}/{i}", arrays) for i, child in enumerate(node)]}
    if isinstance(node, str | bytes):
        stored = node.encode("utf-8", "surrogatepass") if isinstance(node, str) else bytes(node)
        arrays.append(np.frombuffer(stored, np.uint8))
        return {"str" if isinstance(node, str) else "bytes": len(stored)}
    array = np.asarray(node)
    if array.dtype.kind in "US":
        arrays.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return [array.dtype.newbyteorder("<").str, list(array.shape)]
    if array.dtype == object:
        raise DataError(
            f"{where}: objects of type {type(node).__name__} cannot be written. Records hold dicts, lists, tuples and "
            "None, of numpy arrays, numbers, str and bytes."
        )
    check_numbers(array.dtype, where)
    if array.dtype.kind not in NUMERIC_KINDS:
        raise DataError(f"{where}: dtype {array.dtype} cannot be written. Store it as float32 or as its bytes, uint8.")
    arrays.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    return [array.dtype.newbyteorder("<").str, list(array.shape)]


@functools.lru_cache(maxsize=1024)  # most records of a file have the same header
def _layout(header: bytes) -> tuple[Callable[[bytes, int], Example], int]:
    """Returns a function (record, offset of the arrays) -> example, and the size of the arrays in bytes."""
    size = 0

    def plan(entry: Any) -> Callable[[bytes, int], Any]:
        nonlocal size
        match entry:
            case None:
                return lambda record, start: None
            case {"dict": dict(children)}:
                plans = {str(key): plan(child) for key, child in children.items()}
                return lambda record, start: {key: build(record, start) for key, build in plans.items()}
            case {"list": list(children)}:
                items = [plan(child) for child in children]
                return lambda record, start: [build(record, start) for build in items]
            case {"tuple": list(children)}:
                items = [plan(child) for child in children]
                return lambda record, start: tuple(build(record, start) for build in items)
            case {"str": int(count)} | {"bytes": int(count)} if count >= 0:
                offset, is_str = size, "str" in entry
                size += count + -count % ALIGNMENT

                def text(record: bytes, start: int) -> str | bytes:
                    stored = record[start + offset : start + offset + count]
                    return stored.decode("utf-8", "surrogatepass") if is_str else stored

                return text
            case [str(name), list(shape)]:
                dtype, offset, count = np.dtype(name), size, math.prod(shape)
                if dtype.kind not in f"{NUMERIC_KINDS}US" or any(not isinstance(n, int) or n < 0 for n in shape):
                    raise ValueError(f"array {entry!r}")
                size += count * dtype.itemsize
                size += -size % ALIGNMENT
                return lambda record, start: np.frombuffer(record, dtype, count, start + offset).reshape(shape)
        raise ValueError(f"entry {entry!r}")

    try:
        build = plan(json.loads(header))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"The header of the record is damaged: {error}. Write the file again.") from error
    return build, size


def _padding(size: int) -> bytes:
    return b"\0" * (-size % ALIGNMENT)
