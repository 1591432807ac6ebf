"""The equations of an ONNX model are found, also in loops."""

import numpy as np

from engine.bundles.onnx_equations import einsum_equations
from tests.bundles.onnx_bytes import FLOAT, graph, model, node


def test_equations_are_found_by_the_names_of_nodes():
    shape = {"x": (FLOAT, ["batch", 4])}
    inner = graph([node("Einsum", ["x", "w"], "inner", equation="ij,jk->ik")], shape, shape, {})
    nodes = [
        node("Cast", ["x"], "long" * 50, to=300),  # numbers above 127 have two bytes
        node("Einsum", ["x", "w"], "outer", equation="ij,jk->ki"),
        node("Loop", ["x"], "loop", body=inner),
        node("Upsample", ["x"], "up", mode="linear"),
    ]
    weights = {"w": np.ones((4, 40), np.float32)}
    assert einsum_equations(model(nodes, shape, shape, weights)) == {"outer": "ij,jk->ki", "inner": "ij,jk->ik"}
    assert einsum_equations(b"") == {}
