"""Layers of compiled programs: the FLOPs and bytes of each, by the weights that its instructions read."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from engine.bundles.layer_costs import Layer, layers_of_hlo, layers_of_onnx


def compiled(function, weights, inputs):
    return str(jax.jit(function).lower(weights, inputs).compile().as_text())


def test_products_count_to_the_layer_of_their_weights():
    shapes = {"hidden/0/kernel": (8, 16), "hidden/0/bias": (16,), "head/kernel": (16, 4)}
    weights = {name: np.ones(shape, "f") for name, shape in shapes.items()}

    def function(weights, inputs):
        x = jax.nn.relu(inputs["x"] @ weights["hidden/0/kernel"] + weights["hidden/0/bias"])
        return jax.nn.softmax(x @ weights["head/kernel"])

    text = compiled(function, weights, {"x": np.ones((2, 8), "f")})
    found = {layer.name: layer for layer in layers_of_hlo(text, {}, "weights")}
    assert found["hidden/0"].flops == 2 * 2 * 8 * 16
    assert found["head"].flops == 2 * 2 * 16 * 4
    assert set(found) == {"hidden/0", "head"}  # the softmax follows the head
    assert found["hidden/0"].bytes >= 4 * (8 * 16 + 16 + 2 * 16)
    [entry] = re.findall(r"^ENTRY.*?^}", text, re.DOTALL | re.MULTILINE)
    times = dict.fromkeys(re.findall(r"%([\w.-]+) = .*kernel__", entry), 0.25)
    assert sum(layer.seconds for layer in layers_of_hlo(text, times, "weights")) == 0.5  # of the two products


def test_weights_of_a_loop_keep_their_name():
    weights = {"layers/kernel": np.ones((3, 8, 8), "f")}

    def function(weights, inputs):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), inputs["x"], weights["layers/kernel"])[0]

    found = layers_of_hlo(compiled(function, weights, {"x": np.ones((2, 8), "f")}), {}, "weights")
    assert {layer.name: layer.flops for layer in found if layer.flops} == {"layers": 3 * 2 * 2 * 8 * 8}


def test_program_without_weights_has_its_operations():
    found = layers_of_hlo(compiled(lambda weights, inputs: jnp.sin(inputs["x"]), {}, {"x": np.ones(3, "f")}), {}, "")
    assert [layer.flops for layer in found] == [0] and "sin" in found[0].name


def node(name, operation, inputs, outputs, seconds=1e-6, **sizes):
    sizes = {f"{part}_size": str(sizes.get(part, 0)) for part in ("output", "activation", "parameter")}
    shapes = {"input_type_shape": [{"float": x} for x in inputs], "output_type_shape": [{"float": x} for x in outputs]}
    return {"name": f"{name}_kernel_time", "op_name": operation, "seconds": seconds, **sizes, **shapes}


def test_nodes_of_onnx_have_flops_and_bytes():
    nodes = [
        node("packed", "Gemm", [[2, 8], []], [[2, 16]], output=128, activation=64),  # its weight is not listed
        node("listed", "MatMul", [[2, 8], [8, 16]], [[2, 16]], output=128, activation=64, parameter=512),
        node("scores", "MatMul", [[2, 3, 8], [2, 8, 5]], [[2, 3, 5]], activation=512),
        node("conv", "Conv", [[1, 3, 8, 8], [4, 3, 3, 3]], [[1, 4, 8, 8]], seconds=1e-3),
        node("attention", "Einsum", [[1, 3, 2, 8], [1, 5, 2, 8]], [[1, 2, 3, 5]]),
        node("relu", "Relu", [[2, 16]], [[2, 16]], output=128, activation=128),
    ]
    found = layers_of_onnx(nodes, {"attention": "bqhd,bkhd->bhqk"})
    assert found[0] == Layer("conv", ("Conv",), 1e-3, 2 * (4 * 8 * 8) * (3 * 3 * 3), 0)
    costs = {layer.name: (layer.flops, layer.bytes) for layer in found[1:]}
    product, arrays = 2 * 2 * 8 * 16, 128 + 64 + 4 * 8 * 16
    assert costs["packed"] == costs["listed"] == (product, arrays)
    assert costs["scores"] == (2 * 2 * 3 * 8 * 5, 512)
    assert costs["attention"] == (2 * 2 * 3 * 5 * 8, 0)
    assert costs["relu"] == (0, 256)
