"""The values of features are those of protobuf, in the usual form and in every other form that the format allows."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.tf_values import raw_features, values_of
from tests.readers.wire_format import example, feature, field, varint

INTEGERS = [0, 1, 127, 128, 2**31, -1, -(2**63), 2**63 - 1]


def plain(feature):
    found = values_of(feature)
    return None if found is None else (found[0], list(found[1]))


@pytest.mark.parametrize(
    "values", [[5], [], [0, 127], INTEGERS, [0.5, -1.0], [b""], [b"x" * 200], [b"a", b"b"], [300] * 99]
)
def test_usual_forms(values):
    kind = {int: "int64", float: "float32", bytes: "bytes"}[type(values[0]) if values else int]
    assert plain(feature(values)) == (kind, values)


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        (field(3, field(1, 7) + field(1, 300)), ("int64", [7, 300])),  # not packed
        (field(3, field(1, varint(7)) + field(1, varint(8))), ("int64", [7, 8])),  # two runs
        (field(3, field(1, varint(7))) + field(3, field(1, varint(8))), ("int64", [7, 8])),  # two lists of one kind
        (field(2, field(1, b"\0\0\0\0")) + field(3, field(1, varint(8))), ("int64", [8])),  # the last kind counts
        (field(2, b""), ("float32", [])),
        (field(2, b"\x0d\0\0\x80\x3f"), ("float32", [1.0])),  # a float that is not packed
        (field(9, b"later"), None),
        (b"", None),
    ],
)
def test_other_forms(stored, values):
    assert plain(stored) == values


@pytest.mark.parametrize("stored", [b"\x12\x05\x0a\x03abc", b"\x1a\x04\x0a\x02\x80\x80", b"\x0a\xff", b"\x1a\x03\x0a"])
def test_damaged_feature_is_reported(stored):
    with pytest.raises(DataError, match="is damaged"):
        values_of(stored)


def test_parts_that_are_written_twice_are_merged():
    first, second = field(2, feature([1])), field(2, feature([2]))
    record = field(1, field(1, field(1, b"x") + first + second))
    assert plain(raw_features(record)[0]["x"]) == ("int64", [1, 2])
    found, _ = raw_features(example(x=[1], y=[2.5]) + example(x=[3]))  # of two entries of a name, the last counts
    assert {name: plain(found[name]) for name in found} == {"x": ("int64", [3]), "y": ("float32", [2.5])}


def test_arrays_are_views_of_the_record():
    kind, values = values_of(feature([0.5, 1.5])) or ("", [])
    assert kind == "float32" and isinstance(values, np.ndarray) and not values.flags.owndata
