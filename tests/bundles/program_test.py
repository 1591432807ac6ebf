"""Programs in StableHLO."""

import re

import jax
import numpy as np
import pytest

from engine.base.errors import ConfigError, TaskError
from engine.bundles.forward import Forward
from engine.bundles.program import compiled, export_program, input_specs, symbols_of

ROW = jax.ShapeDtypeStruct((4, 2), np.float32)


def forward(function=lambda weights, inputs: {"y": inputs["x"] @ weights["w"]}):
    """Returns a function that multiplies its input `[batch, 4, 2]` by a weight."""
    return Forward(function, {"w": np.array([[1.0, 2, 3], [4, 5, 6]], np.float32)}, {"x": ROW})


@pytest.mark.parametrize("holds_weights", [True, False])
def test_program_runs_with_any_size_of_its_named_dimensions(holds_weights):
    found = forward()
    specs = input_specs(found, None, {"x": "n, t, 2"})
    program = export_program(found, specs, "here", ("cpu", "tpu"), holds_weights)
    assert list(symbols_of(program.inputs)) == ["n", "t"] and str(program.outputs["y"].shape) == "(n, t, 3)"
    call = compiled(program.stablehlo, None if holds_weights else {**found.weights, "other": np.zeros(3)})
    for shape in ((1, 1, 2), (3, 5, 2)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(call({"x": x})["y"], x @ found.weights["w"], rtol=1e-6)


def test_same_function_gives_the_same_bytes_without_source_lines():
    first = export_program(forward(), input_specs(forward(), None, {}), "here")
    again = export_program(forward(), input_specs(forward(), None, {}), "here")
    assert first.stablehlo == again.stablehlo
    assert not re.search(rb"program_test|engine/", first.stablehlo)


@pytest.mark.parametrize(
    ("rows", "shapes", "expected"),
    [
        (None, {}, "(batch, 4, 2)"),
        (3, {}, "(3, 4, 2)"),
        (None, {"x": "batch, length, 2"}, "(batch, length, 2)"),
        (3, {"x": "5, 4, 2"}, "(5, 4, 2)"),
    ],
)
def test_shapes_are_read(rows, shapes, expected):
    assert str(input_specs(forward(), rows, shapes)["x"].shape) == expected


def test_wrong_shapes_are_named():
    with pytest.raises(ConfigError, match=re.escape("--shape=x:n: found 1 dimensions, but x has 3: batch, 4, 2.")):
        input_specs(forward(), None, {"x": "n"})
    for size in ("2*n", "0", "-1"):
        with pytest.raises(ConfigError, match=re.escape(f"--shape=x:{size},4,2: found {size}. Write numbers from 1")):
            input_specs(forward(), None, {"x": f"{size},4,2"})
    with pytest.raises(ConfigError, match=r"--shape=x:n,%,2: syntax error .* Write numbers and names: batch, 8\."):
        input_specs(forward(), None, {"x": "n,%,2"})


def test_function_that_needs_a_size_is_explained():
    sized = forward(lambda weights, inputs: {"y": inputs["x"] / len(inputs["x"])})
    expected = (
        r"here: cannot be exported with the inputs x float32\[batch, 4, 2\].*In a program for any batch, use x.shape"
    )
    with pytest.raises(TaskError, match=expected):
        export_program(sized, input_specs(sized, None, {}), "here")
    assert compiled(export_program(sized, input_specs(sized, 2, {}), "here", ("cpu",)).stablehlo, sized.weights)
