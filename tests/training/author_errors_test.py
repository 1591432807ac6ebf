"""Errors of an author's function become one sentence with its line and with what it got."""

import re

import numpy as np
import pytest

from engine.base.errors import ConfigError, TaskError
from engine.training.author_errors import entries, errors_described


def raised(function, **given) -> str:
    with pytest.raises(TaskError) as found, errors_described("Net.figure", **given):
        function()
    return str(found.value)


def test_error_names_the_line_and_each_argument():
    example = {"points": np.zeros((3, 2), np.float32), "speed": 2.0, "city": b"Oslo", "pair": (None, np.int8(1))}
    text = raised(lambda: [0][1], example=example, prediction={"xy": np.zeros(2, np.int64)})
    assert re.match(r"Net.figure failed: IndexError: list index out of range \(\S*author_errors_test.py:\d+ in ", text)
    got = "It got example: city text, pair/1 int8[], points float32[3, 2], speed float64[]; prediction: xy int64[2]."
    assert text.endswith(f"). {got}")


def test_missing_key_gets_the_nearest_name_of_any_argument():
    text = raised(lambda: {}["spede"], example={"speed": 1}, prediction={"xy": 1})
    assert text.startswith("Net.figure: there is no 'spede' (")
    assert "). Did you mean speed? It got example: speed int64[]; prediction: xy int64[]." in text


def test_entries_of_large_examples_are_counted():
    text = raised(lambda: [0][1], example=dict.fromkeys(map(str, range(50)), 1))
    assert text.endswith(" and 10 more.")
    assert entries(np.zeros(2, np.float32)) == ["float32[2]"]
    assert raised(lambda: [0][1], example={}).endswith("It got example: nothing.")


def test_errors_of_the_engine_are_unchanged():
    with pytest.raises(ConfigError, match=r"^own$"), errors_described("Net.figure", example=1):
        raise ConfigError("own")
