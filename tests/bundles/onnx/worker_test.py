"""Methods converted to ONNX in the environment of jax2onnx, and run by onnxruntime there.

CONVOY_ONNX_PYTHON names its interpreter; under Bazel it is the one of the test.
"""

import functools

import jax
import numpy as np
import pytest

from engine.base.errors import ConfigError, TaskError
from engine.bundles.onnx import convert
from engine.bundles.onnx.worker import OPSET
from engine.bundles.parity import differences, run_frames
from tests.bundles.onnx import subjects

pytestmark = pytest.mark.multiprocess


@functools.cache
def python():
    """Returns the interpreter of the environment; skips the test without one."""
    try:
        return convert.find_python()
    except ConfigError as error:
        pytest.skip(f"no environment with jax2onnx: {error}")


def several():
    """Returns methods by name, each with its function."""
    frames = [{"x": subjects.vectors(4, seed)["x"]} for seed in range(3)]
    memory = {"state/memory": np.zeros((4, 8), np.float32)}
    fewer = [{"x": frame["x"][:1]} for frame in frames], {"state/memory": np.ones((1, 8), np.float32)}
    lengths = [([subjects.sequences(*sizes)], {}) for sizes in ((2, 7), (1, 7), (5, 3), (3, 80))]
    many = [([subjects.points(rows)], {}) for rows in (2, 1, 5)]
    return {
        "predict": subjects.method("predict", subjects.vectors(5)),
        "attend": subjects.method(
            "attend", subjects.sequences(2, 7), {"x": "n, t, 8", "segments": "n, t"}, cases=lengths
        ),
        "remember": subjects.method("remember", subjects.vectors(4), cases=[(frames, memory), fewer]),
        "detect": subjects.method("detect", subjects.points(2), cases=many),
    }


@pytest.fixture(scope="module")
def converted():
    """Returns, by name of a method, the method, its function, and the ONNX program."""
    methods = several()
    programs = convert.convert(subjects.loaded(), [method for method, _ in methods.values()], python())
    return {name: (*methods[name], program) for name, program in zip(methods, programs, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "attend", "remember", "detect"])
def test_onnxruntime_computes_what_jax_does_at_every_size(converted, name):
    method, forward, program = converted[name]
    call = jax.jit(functools.partial(forward.function, forward.weights))
    assert len(program.outputs) == len(method.cases)
    for case, found in zip(method.cases, program.outputs, strict=True):
        expected = run_frames(lambda inputs: jax.device_get(call(inputs)), *case)
        worst = max(differences(found, expected).values())
        assert worst < 2e-6, (differences(found, expected), found, expected)
        if name == "detect":
            assert (found["score"] > 0).any() and (found["score"] == 0).any()  # some boxes are left out


@pytest.mark.slow
def test_names_symbols_and_versions_are_those_of_the_function(converted):
    for method, _, program in converted.values():
        assert program.opset == OPSET and {"jax2onnx", "onnxruntime"} <= program.versions.keys()
        assert all(name.encode() in program.model for name in method.inputs)
    assert b"scores/all" in converted["predict"][2].model and b"next/state/memory" in converted["remember"][2].model
    assert b"MatMul" in converted["attend"][2].model and b"Einsum" not in converted["predict"][2].model
    assert b"ScatterElements" in converted["detect"][2].model  # whose sums threads do not overwrite
    assert b"dynamic_" not in b"".join(program.model[-400:] for *_, program in converted.values())
    text = b"".join(program.model for *_, program in converted.values())
    assert b".py" not in text and b"tests/" not in text  # no path of this machine


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(converted, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    methods = [method for method, *_ in converted.values()]
    again = convert.convert(subjects.loaded(), methods, python())
    assert [program.model for program in again] == [program.model for *_, program in converted.values()]


@pytest.mark.slow
def test_an_operation_without_a_form_in_onnx_is_named_with_its_line():
    method, _ = subjects.method("call_python", subjects.vectors(2))
    with pytest.raises(TaskError) as error:
        convert.convert(subjects.loaded(), [method], python())
    text = str(error.value)
    assert text.startswith("Several.call_python: the operation 'pure_callback' (tests/bundles/onnx/tasks.py:")
    assert " in call_python) has no form in ONNX: " in text
    assert text.endswith("Compute it with jax.numpy, or after the program; --format=stablehlo has every operation.")


@pytest.mark.slow
def test_a_condition_on_the_number_of_rows_is_named_with_its_line():
    method, _ = subjects.method("branch", subjects.vectors(4))
    with pytest.raises(TaskError, match=r"Several.branch: cannot be traced for ONNX \(tests/bundles/onnx/tasks.py:\d+"):
        convert.convert(subjects.loaded(), [method], python())
