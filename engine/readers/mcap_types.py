"""Decoders of the messages of MCAP logs by the types in the log: of ROS 2 and of Protocol Buffers."""

from collections.abc import Mapping

from engine.base.errors import DataError
from engine.readers import protobuf_messages, ros2_messages
from engine.readers.mcap_file import Schema
from engine.readers.protobuf_messages import ProtobufMessages
from engine.readers.ros2_messages import Ros2Messages
from engine.storage.mounts import shown


def schema_decoder(topic: str, types: Mapping[tuple[str, Schema | None], str]) -> Ros2Messages | ProtobufMessages:
    """Returns the decoder of a topic.

    Args:
        topic: its name, for error texts.
        types: (encoding of messages, their schema) -> path of a log with them.

    Raises:
        DataError: the encoding needs a decoder, the schemas describe different messages, or a library is missing.
    """
    found = [(_decoder(topic, encoding, schema, path), path) for (encoding, schema), path in types.items()]
    (first, first_path), *others = found
    for other, path in others:
        if type(other) is not type(first) or other.fields != first.fields:
            raise DataError(
                f"topic {topic!r} has other fields in {shown(path)} than in {shown(first_path)}. Read these logs "
                f"separately, or name a decoder for all: decoders={{{topic!r}: 'package.module.function_of_bytes'}}."
            )
    return first


def _decoder(topic: str, encoding: str, schema: Schema | None, path: str) -> Ros2Messages | ProtobufMessages:
    try:
        if schema is not None and (encoding, schema.encoding) == ros2_messages.ENCODINGS:
            return Ros2Messages(schema.name, schema.data)
        if schema is not None and (encoding, schema.encoding) == protobuf_messages.ENCODINGS:
            return ProtobufMessages(schema.name, schema.data)
    except DataError as error:
        raise DataError(f"{shown(path)}: topic {topic!r}: {error}") from error
    known = encoding in (ros2_messages.ENCODINGS[0], protobuf_messages.ENCODINGS[0])
    how = f" with a schema in {schema.encoding if schema else 'no language'}" if known else ""
    raise DataError(
        f"topic {topic!r} is encoded as {encoding or 'unknown'}{how}, which needs a decoder: "
        f"decoders={{{topic!r}: 'package.module.function_of_bytes'}}."
    )
