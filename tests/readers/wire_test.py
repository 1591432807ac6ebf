import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers import wire
from tests.properties import examples
from tests.readers.wire_format import field, varint

INT64 = st.integers(-(2**63), 2**63 - 1)


@examples(200)
@given(st.lists(st.one_of(INT64, st.binary(max_size=300), st.floats(width=64)), max_size=8))
def test_fields_return_what_was_written(values):
    record = b"".join(field(i + 1, value) for i, value in enumerate(values))
    found = []
    for number, kind, a, b in wire.fields(record):
        assert number == len(found) + 1
        value = {
            wire.VARINT: lambda a=a: wire.signed(a),
            wire.BYTES: lambda a=a, b=b: record[a:b],
            wire.FIXED64: lambda a=a: np.frombuffer(record, "<f8", 1, a)[0],
        }[kind]()
        found.append(value)
    np.testing.assert_equal(found, values)


@examples(200)
@given(st.lists(INT64, max_size=40), st.lists(st.integers(0, 127), max_size=40), st.booleans())
def test_repeated_integers_are_read_packed_or_not(large, small, packed):
    values = large + small
    body = b"".join(map(varint, values))
    record = field(3, 7) + (field(1, body) if packed else b"".join(field(1, value) for value in values))
    assert wire.integers(record, 0, len(record), 1).tolist() == values
    assert wire.varints(b"\xff" + body, 1, len(body) + 1).tolist() == values


def test_repeated_numbers_are_joined_in_their_order():
    values = np.arange(6, dtype="<f8")
    record = field(4, values[:2].tobytes()) + field(4, 2.0) + field(5, b"x") + field(4, values[3:].tobytes())
    assert wire.numbers(record, 0, len(record), 4, "<f8").tolist() == values.tolist()
    with pytest.raises(DataError, match="7 bytes are no packed numbers of 8 bytes"):
        wire.numbers(field(4, bytes(7)), 0, 9, 4, "<f8")


@examples(500)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_raise_a_data_error(data):
    for read in (
        lambda: list(wire.fields(data)),
        lambda: wire.varints(data, 0, len(data)),
        lambda: wire.integers(data, 0, len(data), 1),
        lambda: wire.numbers(data, 0, len(data), 1, "<f4"),
        lambda: wire.text(data, 0, len(data)),
    ):
        try:
            read()
        except DataError as error:
            assert str(error).startswith("byte ")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x08", "byte 1: a number is incomplete"),
        (b"\x0a\x05ab", "byte 0: field 1 of 5 bytes is longer than the rest of its message, 2 bytes"),
        (b"\x0b", "byte 0: field 1 has type 3"),
        (b"\x00\x00", "byte 0: there is no field 0"),
        (b"\x08" + b"\xff" * 11, "byte 1: a number is incomplete"),
        (b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "byte 0: field 1 of 9223372036854775808 bytes is longer"),
    ],
)
def test_damage_is_reported_with_its_position(data, error):
    with pytest.raises(DataError, match=error):
        list(wire.fields(data))
