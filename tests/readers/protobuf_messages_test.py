import pytest
from google.protobuf import descriptor_pb2, struct_pb2, timestamp_pb2, wrappers_pb2

from engine.base.errors import DataError
from engine.readers.protobuf_messages import ProtobufMessages


def descriptors(module):
    found = descriptor_pb2.FileDescriptorSet()
    module.DESCRIPTOR.CopyToProto(found.file.add())
    return found.SerializeToString()


def test_unset_fields_have_their_defaults():
    decode = ProtobufMessages("google.protobuf.Timestamp", descriptors(timestamp_pb2))
    assert decode(b"") == {"seconds": 0, "nanos": 0}
    assert decode(timestamp_pb2.Timestamp(seconds=5).SerializeToString())["seconds"] == 5
    with pytest.raises(DataError, match=r"is no google.protobuf.Timestamp, or is damaged: DecodeError"):
        decode(b"\xff")


def test_bytes_and_text_stay_what_they_are():
    decode = ProtobufMessages("google.protobuf.BytesValue", descriptors(wrappers_pb2))
    assert decode(wrappers_pb2.BytesValue(value=b"a\0").SerializeToString()) == {"value": b"a\0"}


def test_type_that_contains_itself_is_named():
    with pytest.raises(DataError, match=r"the type google.protobuf.Struct contains itself, which fits no array"):
        ProtobufMessages("google.protobuf.Struct", descriptors(struct_pb2))
