from types import SimpleNamespace

import jax
import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.message_arrays import Field, to_example

POINT = (Field("x", "float32"), Field("name", "text"))
FIELDS = (
    Field("seconds", "int32"),
    Field("points", POINT, is_list=True),
    Field("sizes", (Field("wh", "uint16", is_list=True, size=2),), is_list=True),
)


def message(count, seconds=0, wh=(1, 2)):
    points = [SimpleNamespace(x=i, name=f"{i}") for i in range(count)]
    sizes = [SimpleNamespace(wh=list(wh)) for _ in range(count)]
    return SimpleNamespace(seconds=seconds, points=points, sizes=sizes)


def test_list_of_messages_becomes_arrays_with_the_dtypes_of_the_schema():
    found = to_example(message(3), FIELDS)
    assert found["points"]["x"].tolist() == [0, 1, 2]
    assert found["points"]["name"].tolist() == ["0", "1", "2"]
    assert found["sizes"]["wh"].tolist() == [[1, 2]] * 3
    empty = to_example(message(0), FIELDS)
    assert jax.tree.structure(empty) == jax.tree.structure(found)
    assert empty["points"]["x"].dtype == found["points"]["x"].dtype == np.float32
    assert empty["sizes"]["wh"].dtype == found["sizes"]["wh"].dtype == np.uint16
    assert empty["sizes"]["wh"].shape == (0, 2) and empty["points"]["name"].shape == (0,)


def test_number_that_a_library_reads_as_unsigned_keeps_its_bits():
    assert to_example(message(0, seconds=2**32 - 2), FIELDS)["seconds"] == -2


def test_lists_that_fit_no_array_are_data_errors():
    with pytest.raises(DataError, match=r"field wh has 3 elements instead of 2"):
        to_example(message(1, wh=(1, 2, 3)), FIELDS)
    ragged = (Field("rows", (Field("xs", "int8", is_list=True),), is_list=True),)
    rows = [SimpleNamespace(xs=[1]), SimpleNamespace(xs=[1, 2])]
    with pytest.raises(DataError, match=r"messages of field rows hold lists of different lengths, which fit no array"):
        to_example(SimpleNamespace(rows=rows), ragged)
