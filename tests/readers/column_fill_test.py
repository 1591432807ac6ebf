"""Nulls are replaced at every depth, and nothing else changes."""

import pyarrow as pa
import pytest

from engine.base.errors import DataError
from engine.readers.column_fill import check_fill, fill_by_name, filled
from engine.readers.columns import make_column


def as_lists(value):
    """Returns arrays as lists, also those in a list."""
    return (
        list(map(as_lists, value)) if isinstance(value, list) else value if isinstance(value, str) else value.tolist()
    )


@pytest.mark.parametrize(
    ("kind", "values", "value", "expected"),
    [
        (pa.int32(), [1, None], 7, [1, 7]),
        (pa.bool_(), [None, False], True, [True, False]),
        (pa.string(), ["a", None], "", ["a", ""]),
        (pa.timestamp("ms"), [None, 5], 3, [3, 5]),
        (pa.list_(pa.int8()), [[1], None, [2, None]], 0, [[1], [], [2, 0]]),
        (pa.large_list(pa.list_(pa.int8())), [[[1], None], None], 0, [[[1], []], []]),
        (pa.list_(pa.int8(), 2), [[1, None]], 4, [[1, 4]]),
        (pa.list_view(pa.int8()), [None, [1, None]], 4, [[], [1, 4]]),
    ],
    ids=str,
)
def test_nulls_are_replaced_at_every_depth(kind, values, value, expected):
    column = make_column(pa.array(values, kind), "c", {"c": value})
    assert [as_lists(column.row(index)) for index in range(len(values))] == expected


def test_arrays_without_nulls_are_the_same():
    array = pa.array([1, 2])
    assert filled(array, "c", 0).equals(array)
    column = make_column(pa.array(["a", "b", None]).dictionary_encode(), "c", {"c": ""})
    assert [column.row(index) for index in range(3)] == ["a", "b", ""]


def test_wrong_names_and_values_are_errors():
    types = {"pose": pa.struct({"x": pa.list_(pa.float32())}), "tags": pa.map_(pa.string(), pa.int8())}
    check_fill({"pose.x": 0, "tags": 1}, types)
    assert fill_by_name({"pose": {"x": 0, "y": None}, "tags": 1}) == {"pose.x": 0, "tags": 1}
    with pytest.raises(DataError, match=r"value for pose, which is no column or field.* Allowed: pose.x, tags"):
        check_fill({"pose": 0}, types)
    with pytest.raises(DataError, match=r"columns: c is int8, found 300. Give a value of its type"):
        make_column(pa.array([1], pa.int8()), "c", {"c": 300})
