import pickle

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.json_values import JsonValues, find_json_values

FIRST = [{"v": 1, "pose": {"xy": [0, 1]}, "boxes": [{"w": 1}, {"w": 2.5}], "n": 1}, {"v": 1.5, "on": True, "more": []}]


def test_field_has_the_dtype_of_the_first_examples():
    values = pickle.loads(pickle.dumps(JsonValues(first=FIRST)))
    found = values({"v": 2, "pose": {"xy": [2.0, 3.0]}, "boxes": [{"w": 3}], "n": [], "on": 1, "other": 1.5})
    assert (found["v"].dtype, found["boxes"][0]["w"].dtype, found["other"].dtype) == (np.float64,) * 3
    assert (found["pose"]["xy"].dtype, found["n"].dtype, found["on"].dtype) == (np.int64,) * 3
    assert values({"v": False})["v"].dtype == bool


@pytest.mark.parametrize("value", [0.5, float("nan"), 1e30])
def test_float_in_a_field_of_integers_names_the_argument(value):
    with pytest.raises(DataError, match=r'^field pose.xy is an integer in .* dtypes={"pose.xy": "float32"}'):
        JsonValues(first=FIRST)({"pose": {"xy": [1, value]}})
    values = JsonValues("a", [{"n": 1}], {"a.n": "uint8"})
    with pytest.raises(DataError, match=r"^field a.n is uint8 by `dtypes`, but holds 256"):
        values({"n": 256})
    assert repr(values) == "JsonValues({'a.n': 'uint8'})"


@pytest.mark.parametrize("value", ["a", ["a"], None, [1, None], 2**65])
def test_field_of_numbers_that_holds_others_is_refused(value):
    with pytest.raises(
        DataError, match=r"^field pose.xy has numbers in the first examples, but holds (a|.'a'|null|36)"
    ):
        JsonValues(first=FIRST)({"pose": {"xy": value}})


def test_field_of_numbers_and_text_is_accepted():
    values = JsonValues(first=[[{"v": 1.5}, {"v": "a"}]])
    found = values([{"v": 1}, {"v": "b"}])
    assert (found[0]["v"].dtype, found[1]["v"]) == (np.float64, "b")


def test_lists_that_are_no_array_remain_lists():
    found = JsonValues()({"a": [[1], [2, 3]], "b": ["x", "y"], "c": [None, 1], "d": [2**65], "e": [[1, 2], [3, 4.5]]})
    assert [part.tolist() for part in found["a"]] == [[1], [2, 3]]
    assert (found["b"].dtype, found["c"][0], found["d"], found["e"].shape) == (object, None, [2**65], (2, 2))


def test_dtypes_of_unknown_fields_and_unknown_dtypes_are_refused():
    def find(dtypes):
        return find_json_values([""], lambda _: FIRST, dtypes)

    assert find({"more.x": "int8"})[""]({"more": [{"x": 1}]})["more"][0]["x"].dtype == np.int8
    with pytest.raises(DataError, match=r"no field 'boxes.v' in JSON. Did you mean boxes.w\? Found: boxes.w, more, n"):
        find({"boxes.v": "int8"})
    for wrong in ("flot", "U3"):
        with pytest.raises(DataError, match=f"field n: found '{wrong}', allowed are names such as 'float32'"):
            find({"n": wrong})
