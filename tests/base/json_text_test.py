import json

import numpy as np
import pytest

from engine.base.errors import RunError
from engine.base.json_text import dumps


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
