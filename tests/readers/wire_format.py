"""Writes messages in the wire format of Protocol Buffers and TFRecord files, for the tests of their readers."""

import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c  # pyright: ignore[reportMissingImports]


def varint(value: int) -> bytes:
    """Returns an integer of 64 bits as a varint."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | bytes | float) -> bytes:
    """Returns a field: an int as a varint, bytes with their length, a float as a double."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return varint(number << 3) + varint(value)


def feature(values: list[int] | list[float] | list[bytes]) -> bytes:
    """Returns a message tf.train.Feature."""
    if values and isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if values and isinstance(values[0], float):
        return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
    return field(3, field(1, b"".join(varint(int(value)) for value in values)))


def example(**features: list) -> bytes:
    """Returns a message tf.train.Example."""
    entries = [field(1, name.encode()) + field(2, feature(values)) for name, values in features.items()]
    return field(1, b"".join(field(1, entry) for entry in entries))


def sequence_example(context: dict[str, list], sequences: dict[str, list[list]]) -> bytes:
    """Returns a message tf.train.SequenceExample; a step without values has no kind of values."""
    found = example(**context)
    entries = []
    for name, steps in sequences.items():
        features = b"".join(field(1, feature(step) if step else b"") for step in steps)
        entries.append(field(1, field(1, name.encode()) + field(2, features)))
    return found + field(2, b"".join(entries))


def _masked(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) % (1 << 32))


def write_tf_record(path: Path, records: Iterable[bytes]) -> Path:
    """Writes a TFRecord file."""
    parts = []
    for record in records:
        size = struct.pack("<Q", len(record))
        parts += [size, _masked(size), record, _masked(record)]
    path.write_bytes(b"".join(parts))
    return path


def read_tf_record(path: Path) -> list[bytes]:
    """Returns the records of a TFRecord file, without any check and without an index next to the file."""
    stored, found, position = path.read_bytes(), [], 0
    while position < len(stored):
        (size,) = struct.unpack_from("<Q", stored, position)
        found.append(stored[position + 12 : position + 12 + size])
        position += 16 + size
    return found
