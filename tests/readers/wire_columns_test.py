import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers.wire_columns import BOOL, DOUBLE, INTEGER, columns, spans
from tests.properties import examples
from tests.readers.wire_format import field

DTYPES = {2: DOUBLE, 3: INTEGER, 11: BOOL}
MESSAGE = st.lists(
    st.one_of(
        st.tuples(st.just(2), st.floats(allow_nan=False)),
        st.tuples(st.just(3), st.sampled_from([0, 1, 127, 128, 300, -1])),
        st.tuples(st.just(11), st.booleans()),
        st.tuples(st.just(7), st.sampled_from([5, 1.5, b"ab"])),
    ),
    max_size=4,
)


@examples(300)
@given(st.lists(MESSAGE, max_size=12))
def test_columns_equal_the_fields_of_each_message(messages):
    bodies = [b"".join(field(number, value) for number, value in message) for message in messages]
    record = field(9, 1) + b"".join(field(4, body) for body in bodies)
    where = spans(record, 0, len(record), 4)
    assert [record[a:b] for a, b in where] == bodies
    found = columns(record, where, DTYPES)
    for number, dtype in DTYPES.items():
        expected = [dict(message).get(number, 0) for message in messages]
        assert found[number].dtype == np.dtype(dtype)
        assert found[number].tolist() == expected


def test_damage_in_one_of_many_messages_is_a_data_error():
    record = b"".join(field(4, field(3, i % 100)) for i in range(50))
    damaged = record[:-2] + b"\x1d" + record[-1:]  # the last message now has a field of 4 bytes in one byte
    with pytest.raises(DataError, match="field 3 of 4 bytes is longer than the rest of its message"):
        columns(damaged, spans(damaged, 0, len(damaged), 4), DTYPES)
