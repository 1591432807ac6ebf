"""Finds the values of features in the wire format of `tf.train.Example` and `tf.train.SequenceExample`.

Protocol Buffers parses a record to a map from names to bytes, one entry for each feature. Only features in use are
decoded. The usual form of a feature, one list of packed values, is read in place; Protocol Buffers parses other forms.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.readers.protobuf_types import RecordType

_LISTS = {
    "BytesList": "repeated bytes value = 1",
    "FloatList": "repeated float value = 1",
    "Int64List": "repeated int64 value = 1",
    "Feature": "oneof BytesList bytes_list = 1; oneof FloatList float_list = 2; oneof Int64List int64_list = 3",
}
_FEATURE = RecordType("tensorflow.Feature", _LISTS)
_EXAMPLE = RecordType(
    "tensorflow.Example",
    {
        "Features": "map bytes feature = 1",
        "FeatureList": "repeated bytes feature = 1",
        "FeatureLists": "map FeatureList feature_list = 1",
        "Example": "Features features = 1; FeatureLists feature_lists = 2",  # of a SequenceExample, context = 1
    },
)
_WHOLE = RecordType(
    "tensorflow.Example",
    {
        **_LISTS,
        "Features": "map Feature feature = 1",
        "FeatureList": "repeated Feature feature = 1",
        "FeatureLists": "map FeatureList feature_list = 1",
        "Example": "Features features = 1; FeatureLists feature_lists = 2",
    },
)
BYTES, FLOATS, INTEGERS = 0x0A, 0x12, 0x1A  # tags of the lists of a feature
_MORE = 0x80  # bit of a byte of an integer that another byte follows
FLOAT32 = np.dtype("<f4")
MOST_BYTES = 10  # of an integer

type Values = tuple[str, Sequence[Any] | np.ndarray]
"""The kind of a feature, "bytes", "float32" or "int64", and its values. An array may be one that cannot be written."""


def raw_features(record: bytes) -> tuple[Mapping[str, bytes], Mapping[str, Sequence[bytes]]]:
    """Returns name -> feature of an Example or a context, and name -> steps of each sequence, each step a feature.

    Raises:
        DataError: the record is damaged.
    """
    message = _EXAMPLE.parse(record)
    if message.ByteSize() != len(record):
        # A part that is written twice, of which the map has the last: the type with all fields merges both.
        message = _EXAMPLE.parse(_WHOLE.parse(record).SerializeToString())
    lists = message.feature_lists.feature_list
    return message.features.feature, {name: lists[name].feature for name in lists}


def values_of(feature: bytes) -> Values | None:
    """Returns the values of a feature; None if it has no list of values. Raises DataError if it is damaged.

    Integers below 128 are an array of uint8.
    """
    if feature and feature.startswith(header := header_of(feature[0], len(feature))):
        tag, data = feature[0], feature[len(header) :]
        if tag == BYTES:
            return "bytes", (data,)
        if tag == FLOATS and len(data) % 4 == 0:
            return "float32", np.frombuffer(data, FLOAT32)
        if tag == INTEGERS and data.isascii():  # each byte is a number
            return "int64", np.frombuffer(data, np.uint8)
        if tag == INTEGERS and (value := only_integer(data)) is not None:
            return "int64", np.array([value], np.int64)
    message = _FEATURE.parse(feature)
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    values = getattr(message, kind).value
    if kind == "bytes_list":
        return "bytes", values
    return ("float32", np.array(values, np.float32)) if kind == "float_list" else ("int64", np.array(values, np.int64))


@functools.lru_cache(4096)
def header_of(tag: int, size: int) -> bytes:
    """Returns the bytes before the packed values of a feature of this size that has one list with one run of values."""
    for count in range(size, -1, -1):
        values = b"\x0a" + _varint(count)
        header = bytes([tag]) + _varint(len(values) + count) + values
        if len(header) + count == size:
            return header
        if len(header) + count < size:
            break
    return b"\0"  # no feature has this size, or begins so


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= _MORE:
        found.append(value & (_MORE - 1) | _MORE)
        value >>= 7
    return bytes([*found, value])


def only_integer(data: bytes) -> int | None:
    """Returns the integer in a varint; None if there are several, or it is not complete."""
    if len(data) > MOST_BYTES:
        return None
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & (_MORE - 1)) << (7 * place)
        if byte < _MORE:
            if place + 1 < len(data):
                return None
            value &= (1 << 64) - 1
            return value if value < 1 << 63 else value - (1 << 64)
    return None
