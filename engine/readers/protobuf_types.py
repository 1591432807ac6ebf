"""Declares types of Protocol Buffers in code, and parses records of them with the package `protobuf`.

A type lists only the fields that a reader uses: the parser skips all others. Each type has a pool of its own, so that a
program may also load the generated modules of TensorFlow or Waymo.
"""

import functools
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from engine.base.errors import DataError


class RecordType:
    """The type of a record.

    Args:
        name: full name, such as "tensorflow.Example".
        messages: name of each message type -> its fields, as in a file of proto3: "repeated float value = 1; ...". The
            fields that begin with `oneof` are one group, with the name `kind`. "map bytes value = 1" is a map from text
            to bytes.
    """

    def __init__(self, name: str, messages: Mapping[str, str]):
        self.name = name
        self._messages = messages

    def parse(self, record: bytes) -> Any:  # no type checker knows the fields of a class that is made at run time
        """Returns the message in a record. Raises DataError if the record is damaged, or of another format."""
        try:
            return self._class.FromString(record)
        except DecodeError as error:
            raise DataError(
                f"the record of {len(record)} bytes is no {self.name}, or is damaged: {error}. Name its decoder, or "
                "write the file again."
            ) from error

    @functools.cached_property
    def _class(self) -> type[Message]:
        # Their import takes 0.1 s, which a reader with another decoder does not need.
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        package, _, _ = self.name.rpartition(".")
        # Records of proto2 have the same wire format. Only proto3 checks that text is UTF-8.
        file = descriptor_pb2.FileDescriptorProto(name=f"{self.name}.proto", package=package, syntax="proto3")
        for name, fields in self._messages.items():
            message = file.message_type.add(name=name)
            for text in fields.split(";"):
                *labels, kind, field_name, _, number = text.split()
                field = message.field.add(name=field_name, number=int(number))
                field.label = field.LABEL_REPEATED if {"repeated", "map"} & {*labels} else field.LABEL_OPTIONAL
                value = field
                if "map" in labels:
                    entry = message.nested_type.add(name=f"{field_name.title().replace('_', '')}Entry")
                    entry.options.map_entry = True
                    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
                    value = entry.field.add(name="value", number=2, label=field.LABEL_OPTIONAL)
                    field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{name}.{entry.name}"
                if kind in self._messages:
                    value.type, value.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
                else:
                    value.type = field.Type.Value(f"TYPE_{kind.upper()}")
                if "oneof" in labels:
                    field.oneof_index = 0
                    if not message.oneof_decl:
                        message.oneof_decl.add(name="kind")
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(self.name))
