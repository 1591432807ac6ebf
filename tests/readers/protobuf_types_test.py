import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers.protobuf_types import RecordType
from tests.properties import examples
from tests.readers.wire_format import field, varint

TYPE = RecordType(
    "test.Record",
    {
        "Point": "double x = 1",
        "Record": "repeated int64 counts = 1; repeated double values = 2; string text = 3; repeated Point points = 4; "
        "oneof Point point = 5; oneof int32 number = 6",
    },
)


@examples(200)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.booleans())
def test_repeated_integers_are_read_packed_or_not(values, packed):
    body = b"".join(map(varint, values))
    record = field(1, body) if packed else b"".join(field(1, value) for value in values)
    assert list(TYPE.parse(field(3, b"a") + record).counts) == values


def test_packed_and_single_values_are_joined_in_their_order():
    record = field(2, struct.pack("<2d", 0, 1)) + field(2, 2.0) + field(4, b"") + field(2, struct.pack("<2d", 3, 4))
    assert list(TYPE.parse(record).values) == [0, 1, 2, 3, 4]


def test_fields_that_are_unknown_or_of_another_type_are_skipped():
    found = TYPE.parse(field(9, b"ab") + field(3, 7) + field(4, field(1, 2.5) + field(2, 1)) + field(10, 1.5))
    assert (found.text, [point.x for point in found.points]) == ("", [2.5])


def test_last_field_of_a_group_counts():
    assert TYPE.parse(field(5, field(1, 1.0)) + field(6, 3)).WhichOneof("kind") == "number"
    assert TYPE.parse(field(6, 3) + field(5, b"")).WhichOneof("kind") == "point"
    assert TYPE.parse(b"").WhichOneof("kind") is None


@pytest.mark.parametrize(
    "record",
    [
        b"\x08",  # a number without its value
        b"\x08" + b"\xff" * 11,  # a number of more than 10 bytes
        b"\x1a\x05ab",  # text that is longer than the record
        b"\x0b",  # a group without an end
        b"\x00\x00",  # field 0
        field(2, bytes(7)),  # 7 bytes of packed doubles
        field(3, b"\xff"),  # text that is not UTF-8
    ],
)
def test_damaged_record_is_named_with_its_type_and_size(record):
    with pytest.raises(DataError, match=rf"^the record of {len(record)} bytes is no test.Record, or is damaged: "):
        TYPE.parse(record)


def test_type_of_the_same_name_in_another_pool_does_not_conflict():
    file = descriptor_pb2.FileDescriptorProto(name="test.Record.proto", package="test")
    file.message_type.add(name="Record")
    descriptor_pool.Default().Add(file)
    again = RecordType("test.Record", {"Record": "repeated int64 counts = 7"})
    assert list(again.parse(field(7, 5)).counts) == [5]
