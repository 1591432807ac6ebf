"""Decodes messages of Protocol Buffers in MCAP logs, with their descriptors in the log (extra `mcap`)."""

from typing import Any

from engine.base.errors import DataError
from engine.readers.message_arrays import BYTES, TEXT, Field
from engine.readers.schema_messages import SchemaMessages

ENCODINGS = ("protobuf", "protobuf")
"""Encoding of the messages and of their schema."""


class ProtobufMessages(SchemaMessages):
    """Function from the bytes of a message of Protocol Buffers to an example: see `message_arrays.to_example`.

    A field that is not set has its default value, such as 0. An enum is its number, and a map is a list of `key` and
    `value`, sorted by key.

    Args:
        name: full name of the type, such as "foxglove.CompressedImage".
        descriptors: a serialized FileDescriptorSet, as in the schemas of MCAP logs.

    Raises:
        DataError: the descriptors are damaged, the type contains itself, or mcap-protobuf-support is not installed.
    """

    kind, module, encodings = "Messages of Protocol Buffers", "mcap_protobuf.decoder", ENCODINGS

    def __init__(self, name: str, descriptors: bytes):
        super().__init__(name, descriptors)
        try:
            descriptor = self._decode(b"").DESCRIPTOR
        except Exception as error:
            raise DataError(f"the descriptors of {name} are damaged: {type(error).__name__}: {error}.") from error
        self.fields = _fields(descriptor, ())


def _fields(descriptor: Any, parents: tuple[str, ...]) -> tuple[Field, ...]:
    """Returns the fields of a type. Raises DataError if it contains itself."""
    if descriptor.full_name in parents:
        raise DataError(
            f"the type {descriptor.full_name} contains itself, which fits no array. Name a decoder of your own: "
            "decoders={...}."
        )
    found = []
    for field in descriptor.fields:
        inside = field.message_type
        if inside is None:
            content = _dtype(field)
        else:
            content = _fields(inside, (*parents, descriptor.full_name))
        found.append(Field(field.name, content, field.is_repeated, number=field.number))
    return tuple(found)


def _dtype(field: Any) -> str:
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        return TEXT if field.type == field.TYPE_STRING else BYTES
    return {
        field.CPPTYPE_INT32: "int32",
        field.CPPTYPE_INT64: "int64",
        field.CPPTYPE_UINT32: "uint32",
        field.CPPTYPE_UINT64: "uint64",
        field.CPPTYPE_DOUBLE: "float64",
        field.CPPTYPE_FLOAT: "float32",
        field.CPPTYPE_BOOL: "bool",
        field.CPPTYPE_ENUM: "int32",
    }[field.cpp_type]
