import json

import numpy as np
import pytest

from engine.base.errors import RunError
from engine.base.json_text import Damaged, dumps, parse, read_lines


def test_numpy_values_become_numbers_and_float32_stays_exact():
    value = np.float32(0.1)
    back = json.loads(dumps({"loss": value, "n": np.int64(3), "ok": np.bool_(True), "v": np.arange(3)}))
    assert back == {"loss": float(value), "n": 3, "ok": True, "v": [0, 1, 2]}
    assert np.float32(back["loss"]) == value


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "NaN"), (np.float32("inf"), "Infinity"), (-float("inf"), "-Infinity")]
)
def test_non_finite_numbers_are_text_that_float_parses(value, text):
    back = json.loads(dumps({"x": [value]}), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back == {"x": [text]}
    np.testing.assert_equal(float(text), float(value))


def test_unsupported_type_error_names_its_path():
    with pytest.raises(RunError, match=r"metrics\.a\[1\]: a object cannot be written as JSON\. Allowed: numbers"):
        dumps({"metrics": {"a": [1, object()]}})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "Expecting ',' delimiter"),
        ("[1e999]", "1e999 is no number that a float can hold"),
        ("NaN", "NaN is no number of JSON"),
        ("9" * 5000, "a number has too many digits"),
        (str(2**63), "it: found 9223372036854775808, expected a number"),
        ("9" * 100, "it: found a larger number"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[" * 70 + "]" * 70, "it is nested too deeply"),
        ('"\0"', "Invalid control character"),
    ],
)
def test_damaged_text_is_named(text, why):
    with pytest.raises(Damaged, match=f"^{why}"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "shape", "why"),
    [
        ({"step": True}, {"step": int}, "step: found true, expected a whole number of 64 bits"),
        ({"step": 1.0}, {"step": int}, "step: found 1.0, expected a whole number of 64 bits"),
        ({"step": "1"}, {"step": float}, 'step: found "1", expected a number'),
        ({}, {"step": int, "time?": int}, "step is missing"),
        ([], {"step": int}, "it: found a list of 0, expected an object"),
        ({"a": {"b": [1, "x"]}}, {"a": {str: [int]}}, r'a\.b\[1\]: found "x", expected a whole number'),
        ([1], (int, object), "it: found a list of 1, expected a list of 2"),
        ("c", frozenset({"a", "b"}), 'it: found "c", expected a or b'),
        ({"code": "x"}, {"code": int | None}, "code: found .x., expected a whole number of 64 bits or null"),
    ],
)
def test_value_of_another_shape_is_named_by_its_path(value, shape, why):
    with pytest.raises(Damaged, match=f"^{why}"):
        parse(json.dumps(value), shape)


def test_value_of_the_shape_keeps_its_order_and_drops_unknown_members():
    text = '{"later": [], "b": "NaN", "a": 3, "c": null, "d": [[1, {"x": [true]}]]}'
    found = parse(text, {"a": float, "b": float, "c": int | None, "d": [(int, object)], "e?": str})
    assert list(found) == ["b", "a", "c", "d"] and np.isnan(found["b"])
    assert (found["a"], found["d"]) == (3, [[1, {"x": [True]}]]) and type(found["a"]) is int
    assert parse('{"a": 1, "x": "y"}', {"a": int, str: str}) == {"a": 1, "x": "y"}
    assert parse("[NaN, 1.5]", [float], constants=True)[1] == 1.5


def test_damaged_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\n{"a": 1e999}\n\n{"a": -2}\n{"a": 3}\n{"a": ')
    found = read_lines(path, {"a": int}, lambda value: "it is negative" if value["a"] < 0 else "")
    assert [value["a"] for value in found.values] == [1, 3]
    assert list(found.damaged) == [2, 3, 5, 7] and found.damaged[5] == "it is negative"
    assert found.note("x") == "x: skipped 4 damaged lines, the first is line 2: it is not UTF-8 text."
    path.write_text('{"a": 1}\n0')
    note = read_lines(path, {"a": int}).note("x")
    assert note == "x: skipped 1 damaged line, which is line 2: it: found 0, expected an object."
    path.write_text("")
    assert read_lines(path, {"a": int}).note("x") == ""
