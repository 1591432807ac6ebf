"""Reads the equations of the Einsum nodes of an ONNX model, which the profile of onnxruntime lacks.

It reads the wire format of Protocol Buffers, so that it needs no package for ONNX. The numbers are those of onnx.proto.
"""

from collections.abc import Iterator

_GRAPH, _NODE = 7, 1  # of a model, of a graph
_NAME, _OPERATION, _ATTRIBUTE = 3, 4, 5  # of a node
_STRING, _SUBGRAPH = 4, 6  # of an attribute
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields


def einsum_equations(model: bytes) -> dict[str, str]:
    """Returns name of a node -> equation, such as "bqhd,bkhd->bhqk"; also of nodes in loops and branches."""
    found: dict[str, str] = {}
    for number, graph in _fields(memoryview(model)):
        if number == _GRAPH:
            _add(graph, found)
    return found


def _add(graph: memoryview, found: dict[str, str]) -> None:
    for number, node in _fields(graph):
        if number != _NODE:
            continue
        texts, attributes = {}, []
        for field, value in _fields(node):
            if field == _ATTRIBUTE:
                attributes.append(dict(_fields(value)))
            texts[field] = bytes(value)
        for attribute in attributes:
            if _SUBGRAPH in attribute:
                _add(attribute[_SUBGRAPH], found)
            if texts.get(_OPERATION) == b"Einsum" and _STRING in attribute:
                found[texts.get(_NAME, b"").decode()] = bytes(attribute[_STRING]).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and content of the fields of a message that have a length; numbers are left out."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"found a field of kind {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Returns a number and the position after it."""
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return value, at
