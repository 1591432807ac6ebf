"""Writes small ONNX models without the package onnx: Protocol Buffers with the field numbers of onnx.proto."""

from collections.abc import Mapping, Sequence

import numpy as np

FLOAT, INT32 = 1, 6
"""Types of arrays."""
OPSET, IR_VERSION = 22, 10
_ATTRIBUTES = {int: (3, 2), str: (4, 3), bytes: (6, 5)}
"""Type of an attribute -> number of its field, and of its type; bytes are a graph."""

type Values = Mapping[str, tuple[int, Sequence[int | str]]]
"""Name -> type and shape."""


def model(nodes: Sequence[bytes], inputs: Values, outputs: Values, weights: Mapping[str, np.ndarray]) -> bytes:
    """Returns a model; the weights are of float32."""
    found = graph(nodes, inputs, outputs, weights)
    return _field(1, IR_VERSION) + _field(7, found) + _field(8, _field(2, OPSET))


def graph(nodes: Sequence[bytes], inputs: Values, outputs: Values, weights: Mapping[str, np.ndarray]) -> bytes:
    """Returns a graph, such as the attribute `body` of a loop."""
    found = b"".join(_field(1, node) for node in nodes) + _field(2, "graph")
    for name, x in weights.items():
        dims = b"".join(_field(1, size) for size in x.shape)
        found += _field(5, dims + _field(2, FLOAT) + _field(8, name) + _field(9, x.tobytes()))
    for number, values in ((11, inputs), (12, outputs)):
        found += b"".join(_field(number, _value(name, *value)) for name, value in values.items())
    return found


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | str | bytes) -> bytes:
    """Returns an operation with one output, after which it is named."""
    found = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, kind)
    for name, value in attributes.items():
        field, kind_of_value = _ATTRIBUTES[type(value)]
        found += _field(5, _field(1, name) + _field(field, value) + _field(20, kind_of_value))
    return found


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value % 128 | 128)
        value >>= 7
    return bytes([*found, value])
