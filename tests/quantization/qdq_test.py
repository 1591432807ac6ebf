"""QuantizeLinear and DequantizeLinear in graphs that round with plain operations, run by ONNX Runtime."""

from typing import Any

import numpy as np
import pytest

from engine.quantization.qdq import insert_qdq

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper: Any = onnx.helper

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
CODES = np.random.default_rng(1).integers(-127, 128, (4, 3)).astype(np.int8)
CODES[0] = 127
SCALE = np.array([[0.5, 0.25, 0.01]], np.float32)


def graph(weight: list[Any], constants: dict[str, Any], product: Any, clip: Any = None) -> Any:
    """Returns a model whose inputs are rounded with a scale of 0.02."""
    nodes = [
        helper.make_node("Div", ["x", "input_scale"], ["divided"]),
        helper.make_node("Round", ["divided"], ["rounded"]),
        clip or helper.make_node("Max", ["low", "rounded"], ["above"]),
        helper.make_node("Min", ["high", "above"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["codes"], to=onnx.TensorProto.INT8),
        helper.make_node("Cast", ["codes"], ["whole"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["whole", "input_scale"], ["inputs"]),
        *weight,
        product,
    ]
    numbers = {"input_scale": np.float32(0.02), "low": np.float32(-128), "high": np.float32(127), **constants}
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "main",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in numbers.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: Any) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": X})
    return found


MATMUL = helper.make_node("MatMul", ["inputs", "weight"], ["y"])
WEIGHTS: dict[str, tuple[list[Any], dict[str, np.ndarray], Any]] = {
    "floats": ([], {"weight": CODES * SCALE}, MATMUL),
    "codes": (
        [
            helper.make_node("Cast", ["stored"], ["whole_codes"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["whole_codes", "scale"], ["weight"]),
        ],
        {"stored": CODES, "scale": SCALE},
        MATMUL,
    ),
    "transposed": (
        [helper.make_node("Transpose", ["stored"], ["weight"], perm=[1, 0])],
        {"stored": np.ascontiguousarray((CODES * SCALE).T)},
        MATMUL,
    ),
    "gemm": ([], {"weight": (CODES * SCALE).T.copy()}, helper.make_node("Gemm", ["inputs", "weight"], ["y"], transB=1)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_rounding_becomes_quantize_and_dequantize_and_the_result_stays(name):
    model = graph(*WEIGHTS[name])
    wanted = run(model)
    found = insert_qdq(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert (found.inputs, found.weights, found.left) == (1, 1, [])
    stored = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    np.testing.assert_array_equal(stored["y_weight_codes"], CODES)
    np.testing.assert_allclose(stored["y_weight_scale"], SCALE[0], rtol=1e-6)
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)


def test_gemm_with_a_bias_stays_one():
    product = helper.make_node("Gemm", ["inputs", "weight", "bias"], ["y"])
    model = graph([], {"weight": CODES * SCALE, "bias": np.array([1, 2, 3], np.float32)}, product)
    wanted = run(model)
    assert insert_qdq(model).weights == 1 and model.graph.node[-1].op_type == "Gemm"
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)


def test_weights_that_are_no_codes_stay_floats():
    model = graph([], {"weight": np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)}, MATMUL)
    wanted = run(model)
    found = insert_qdq(model)
    assert (found.inputs, found.weights, found.left) == (1, 0, ["y"])
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)


def test_other_rounding_stays():
    model = graph([], {"weight": CODES * SCALE, "other": np.float32(0.03)}, MATMUL)
    model.graph.node[0].input[1] = "other"
    before = model.SerializeToString()
    assert insert_qdq(model).inputs == 0
    assert run(model).tobytes() == run(onnx.load_from_string(before)).tobytes()


def test_transpose_of_inputs_comes_before_their_rounding():
    transpose = helper.make_node("Transpose", ["inputs"], ["turned"], perm=[1, 0])
    product = helper.make_node("Gemm", ["turned", "weight"], ["y"], transA=1)
    model = graph([transpose], {"weight": CODES * SCALE}, product)
    wanted = run(model)
    insert_qdq(model)
    assert [node.op_type for node in model.graph.node][:3] == ["Transpose", "QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)
