"""Requests to the converter are read as they were written."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax import export

from engine.base.errors import ConfigError
from engine.bundles.onnx import request
from engine.bundles.onnx.request import Method


def spec(*shape: Any, dtype: Any = np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_request_is_read_as_it_was_written(tmp_path):
    rows, time = export.symbolic_shape("batch, length")
    frames = [{"x/y": np.full((2, 3), i, np.float32), "on": np.ones(2, bool)} for i in range(2)]
    cases = [(frames, {"state/memory": np.arange(2, dtype=np.int32)}), (frames[:1], {})]
    example = {"x": {"y": spec(3)}, "on": spec(dtype=np.bool_), "many": [spec(1), (spec(2, 4), None)]}
    inputs = {"x/y": spec(rows, time), "on": spec(rows, dtype=np.bool_), "fixed": spec(2, dtype=np.uint8)}
    weights = {"hidden/0/kernel": np.eye(2, dtype=np.float32), "count": np.array(3, np.int64)}
    request.write(tmp_path, "train.seed: 1\n", weights, [Method("predict", example, inputs, 4, cases)])
    text, found, [method] = request.read(tmp_path)
    assert text == "train.seed: 1\n" and found.keys() == weights.keys()
    assert all(np.array_equal(found[name], x) and found[name].dtype == x.dtype for name, x in weights.items())
    assert (method.name, method.example, method.rows) == ("predict", example, 4)
    assert {name: request.shape_of(x) for name, x in method.inputs.items()} == {
        "x/y": ["batch", "length"],
        "on": ["batch"],
        "fixed": [2],
    }
    assert method.inputs["x/y"].shape[0] == method.inputs["on"].shape[0]  # one scope
    assert [len(case[0]) for case in method.cases] == [2, 1]
    np.testing.assert_array_equal(method.cases[0][0][1]["x/y"], frames[1]["x/y"])
    np.testing.assert_array_equal(method.cases[0][1]["state/memory"], [0, 1])


def test_an_example_of_another_class_is_refused(tmp_path):
    class Pair(NamedTuple):
        first: jax.ShapeDtypeStruct

    with pytest.raises(ConfigError, match=r"holds Pair, .* Allowed are dicts, lists and tuples"):
        request.write(tmp_path, "", {}, [Method("predict", {"x": Pair(spec(2))}, {}, 4, [])])
