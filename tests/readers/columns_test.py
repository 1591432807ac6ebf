import datetime
import decimal

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers.columns import RaggedError, make_column
from tests.properties import examples

LEAVES = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float16(), st.floats(width=16, allow_nan=False).map(np.float16)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=3)),
    (pa.large_binary(), st.binary(max_size=3)),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b"])),
    (pa.string_view(), st.text(max_size=20)),
]


def wrapped(leaf):
    """Returns a strategy of (type, values of rows), built around a leaf: lists, structs, lists of these."""
    kind, value = leaf
    struct = pa.struct({"x": kind, "y": pa.int8()})
    pair = st.fixed_dictionaries({"x": value, "y": st.integers(-5, 5)})
    return st.one_of(
        st.tuples(st.just(kind), st.lists(value, max_size=6)),
        st.tuples(st.just(pa.list_(kind)), st.lists(st.lists(value, max_size=4), max_size=6)),
        st.tuples(st.just(pa.list_(kind, 2)), st.lists(st.lists(value, min_size=2, max_size=2), max_size=6)),
        st.tuples(
            st.just(pa.large_list(pa.list_(kind))),
            st.lists(st.lists(st.lists(value, min_size=3, max_size=3), max_size=3), max_size=6),
        ),
        st.tuples(st.just(struct), st.lists(pair, max_size=6)),
        st.tuples(st.just(pa.list_(struct)), st.lists(st.lists(pair, max_size=3), max_size=6)),
    )


def as_lists(value):
    """Returns arrays as lists, and a dict of columns as it is."""
    if isinstance(value, dict):
        return {name: as_lists(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def expected(value):
    """Returns a value of pyarrow in the form of an example: a list of dicts as a dict of lists."""
    if isinstance(value, dict):
        return {name: expected(part) for name, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {name: [expected(item[name]) for item in value] for name in value[0]}
    return value


@pytest.mark.slow
@given(st.sampled_from(LEAVES).flatmap(wrapped), st.integers(0, 3))
@examples(150)
def test_rows_equal_the_values_of_pyarrow(case, skipped):
    kind, values = case
    if pa.types.is_nested(kind) and "dictionary" in str(kind):
        return  # pyarrow cannot build these from Python values
    array = pa.array(values, kind).slice(min(skipped, len(values)))
    column, wanted = make_column(array, "c"), array.to_pylist()
    for index, value in enumerate(wanted):
        found = as_lists(column.row(index))
        if isinstance(value, list) and not value:
            assert jax.tree.leaves(found) in ([], [[]], [[], []])
        else:
            assert found == expected(value)


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=8), st.randoms())
@examples(30)
def test_take_and_rows_stack_single_rows(values, random):
    array = pa.array(values, pa.list_(pa.int32()))
    column, indices = make_column(array, "c"), np.array([random.randrange(len(values)) for _ in range(5)])
    assert column.take(indices).tolist() == [values[i] for i in indices]
    assert column.rows(0, len(values)).tolist() == values


def test_tensor_times_and_extension_types():
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.int16).reshape(2, 2, 3))
    assert make_column(tensor, "t").row(1).tolist() == [[6, 7, 8], [9, 10, 11]]
    when = pa.array([datetime.datetime(1970, 1, 1, 0, 0, 3)], pa.timestamp("ms"))
    assert make_column(when, "t").row(0) == 3000
    assert make_column(pa.array([datetime.date(1970, 1, 5)]), "t").row(0) == 4


def test_null_of_a_tensor_makes_only_its_row_unreadable():
    storage = pa.array([[0, 1], [2, 3], None, [4, None], [5, 6]], pa.list_(pa.int32(), 2)).slice(1)
    column = make_column(pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), storage), "t")
    assert [column.row(index).tolist() for index in (0, 3)] == [[2, 3], [5, 6]]
    for index in (1, 2):
        with pytest.raises(DataError, match="column t is null"):
            column.row(index)


@pytest.mark.parametrize(
    ("array", "nbytes"),
    [
        (pa.array([True] * 80), 80),
        (pa.array(["a" * 100] * 50).dictionary_encode(), 5000),
        (pa.array([[1], [2, 3]], pa.list_(pa.int64())), 24),
        (pa.array([{"x": True}] * 40), 40),
    ],
    ids=["booleans", "dictionary", "lists", "structs"],
)
def test_size_is_that_of_the_converted_values(array, nbytes):
    assert nbytes <= make_column(array, "c").nbytes <= nbytes + 8 * len(array) + 8


def test_returned_arrays_may_be_modified():
    column = make_column(pa.array([[1, 2], [3, 4]]), "c")
    column.row(0)[:] = 0
    column.rows(0, 2)[:] = 0
    column.take(np.array([0]))[:] = 0
    assert column.row(0).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int32(), [1, None, 3]),
        (pa.bool_(), [True, None, False]),
        (pa.string(), ["a", None, "c"]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", None, "c"]),
        (pa.list_(pa.int8()), [[1], None, [3]]),
        (pa.list_(pa.int8()), [[1], [2, None], [3]]),
        (pa.list_(pa.int8(), 1), [[1], None, [3]]),
        (pa.list_view(pa.int8()), [[1], None, [2, 3]]),
        (pa.large_list_view(pa.string()), [["a"], [None, "b"], ["c"]]),
        (pa.struct({"x": pa.int8()}), [{"x": 1}, None, {"x": 3}]),
        (pa.list_(pa.struct({"x": pa.int8()})), [[{"x": 1}], [{"x": None}], [{"x": 3}]]),
    ],
    ids=str,
)
def test_null_makes_only_its_row_unreadable(kind, values):
    column = make_column(pa.array(values, kind), "c")
    for index in (0, 2):
        assert as_lists(column.row(index)) == expected(values[index])
    for read in (lambda: column.row(1), lambda: column.rows(0, 3), lambda: column.take(np.array([2, 1]))):
        with pytest.raises(DataError, match=r"column c.* is null. Fill it or remove the row|lists of"):
            read()


def test_list_views_may_be_in_any_order_and_sliced():
    kind, begins, sizes = pa.list_view(pa.int8()), pa.array([2, 0, 1], pa.int32()), pa.array([1, 2, 2], pa.int32())
    array = pa.ListViewArray.from_arrays(begins, sizes, pa.array([1, 2, 3], pa.int8()), type=kind)
    column = make_column(array.slice(1), "c")
    assert [column.row(i).tolist() for i in range(2)] == [[1, 2], [2, 3]]
    assert make_column(array, "c").row(0).tolist() == [3]


def test_inner_lists_of_different_lengths_are_a_list_of_arrays():
    column = make_column(pa.array([[[1], [2, 3]], [[4], [5]]]), "lanes")
    assert [part.tolist() for part in column.row(0)] == [[1], [2, 3]]
    assert column.row(1).tolist() == [[4], [5]]
    with pytest.raises(RaggedError, match="column lanes has lists of 1 and of 2 elements, which fit no array"):
        column.rows(0, 2)
    structs = pa.array([[{"x": [1], "y": 1}, {"x": [2, 3], "y": 2}]])
    found = make_column(structs, "c").row(0)
    assert [part.tolist() for part in found["x"]] == [[1], [2, 3]]
    assert found["y"].tolist() == [1, 2]
    broken = make_column(pa.array([[[1], [2, None]]]), "lanes")
    with pytest.raises(DataError, match="column lanes is null"):
        broken.row(0)


@pytest.mark.parametrize("kind", [pa.null(), pa.month_day_nano_interval()], ids=str)
def test_type_without_array_is_refused(kind):
    with pytest.raises(DataError, match=r"Column c has type .*: allowed are numbers, text, times, lists, maps and str"):
        make_column(pa.nulls(0, kind), "c")


@given(st.lists(st.one_of(st.none(), st.decimals(-9999999, 9999999, places=7)), max_size=6), st.integers(0, 3))
@examples(40)
def test_decimals_are_the_nearest_floats(values, skipped):
    for digits in (14, 38):  # by exact division, and one by one
        column = make_column(pa.array(values, pa.decimal128(digits, 7)).slice(min(skipped, len(values))), "c")
        for index, value in enumerate(values[skipped:]):
            if value is None:
                with pytest.raises(DataError, match="column c is null"):
                    column.row(index)
            else:
                assert (column.row(index), column.row(index).dtype) == (float(value), np.float64)


def test_decimals_without_fraction_are_integers_and_too_many_digits_are_refused():
    whole = [decimal.Decimal(10**17 + 1), decimal.Decimal(-7)]
    column = make_column(pa.array(whole, pa.decimal128(18, 0)), "c")
    assert column.rows(0, 2).tolist() == [10**17 + 1, -7]
    assert column.row(0).dtype == np.int64
    column = make_column(pa.array([decimal.Decimal("0.1"), decimal.Decimal("0.12345678901234567891")]), "c")
    assert column.row(0) == 0.1
    with pytest.raises(DataError, match="column c is null, or has more digits than float64 holds"):
        column.row(1)


def test_maps_are_dicts_or_arrays_of_keys_and_values():
    kind = pa.map_(pa.string(), pa.int8())
    maps = pa.array([[("a", 1)], [("a", 2)], [("b", 3), ("c", 4)], [("b", 1), ("b", 2)]], kind)
    column = make_column(maps, "c")
    assert column.row(2) == {"b": 3, "c": 4}
    assert {key: value.tolist() for key, value in column.rows(0, 2).items()} == {"a": [1, 2]}
    with pytest.raises(RaggedError, match=r"maps with the keys \['a'\] and \['b', 'c'\]"):
        column.take(np.array([0, 2]))
    with pytest.raises(DataError, match="column c has a map with a key twice"):
        column.row(3)
    numbered = make_column(pa.array([[(5, 1), (7, 2)]], pa.map_(pa.int64(), pa.int8())), "c").row(0)
    assert {key: value.tolist() for key, value in numbered.items()} == {"key": [5, 7], "value": [1, 2]}
    listed = make_column(pa.array([[[("a", 1)], [("b", 2)]]], pa.list_(kind)), "c").row(0)
    assert listed == [{"a": 1}, {"b": 2}]
