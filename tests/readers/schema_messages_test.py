"""Decoders of messages are pickled as their schema, and name what they cannot decode."""

import pickle

import pytest

pytest.importorskip("mcap_ros2")
pytest.importorskip("mcap_protobuf")

from google.protobuf import descriptor_pb2, timestamp_pb2

from engine.base.errors import DataError
from engine.readers.protobuf_messages import ProtobufMessages
from engine.readers.ros2_messages import Ros2Messages


def decoders():
    found = descriptor_pb2.FileDescriptorSet()
    timestamp_pb2.DESCRIPTOR.CopyToProto(found.file.add())
    return {
        b"\x08\x05": ProtobufMessages("google.protobuf.Timestamp", found.SerializeToString()),
        b"\0\1\0\0\5\0\0\0\0\0\0\0": Ros2Messages("builtin_interfaces/msg/Time", b"int32 sec\nuint32 nanosec"),
    }


def test_pickled_decoder_is_equal_and_decodes_the_same():
    for data, decoder in decoders().items():
        again = pickle.loads(pickle.dumps(decoder))
        assert repr(again) == repr(decoder) and repr(decoder).startswith(f"{type(decoder).__name__}('")
        assert len(pickle.dumps(decoder)) < 2000
        assert [int(value) for value in again(data).values()] == [5, 0]
        assert again(data) == decoder(data)


def test_damaged_message_is_named():
    for decoder, name in zip(
        decoders().values(), ("google.protobuf.Timestamp", "builtin_interfaces/msg/Time"), strict=True
    ):
        with pytest.raises(DataError, match=f"^is no {name}, or is damaged: .* Try `mcap recover`"):
            decoder(b"\xff")
