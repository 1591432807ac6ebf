"""Writes rounded inputs and weights of an ONNX graph as QuantizeLinear and DequantizeLinear.

Runtimes compute products between them in integers. The graph is that of a quantized function in the form "qdq", which
rounds with plain operations. A part that is not recognised stays in these, which compute the same. Nothing of `onnx` is
imported: the messages of the model are changed through their own classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.quantization.rounding import largest_code

FLOAT, INT8 = 1, 3  # types of tensors in ONNX
_TYPES = {FLOAT: np.float32, INT8: np.int8}
_CHANNELS = {"MatMul": -1, "Gemm": 1, "Conv": 0}
"""Product -> dimension of its second operand that has the output channels."""
_TOLERANCE = 1e-4  # of a code: weights that are not this near to whole codes are left in floats


@dataclasses.dataclass(frozen=True)
class Found:
    """How much of a graph was written so.

    Attributes:
        inputs: number of rounded inputs.
        weights: number of weights.
        left: names of products whose inputs are rounded, but whose weight is left in floats.
    """

    inputs: int
    weights: int
    left: Sequence[str]


def insert_qdq(model: Any, bits: int = 8) -> Found:
    """Changes a model, an onnx.ModelProto, in place.

    Args:
        model: the model.
        bits: of a code of a weight, `Plan.bits`.
    """
    graph = _Graph(model.graph)
    inputs = [node for node in list(model.graph.node) if graph.write_input(node)]
    rounded = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weights, left = 0, list[str]()
    for node in list(model.graph.node):
        if node.op_type in _CHANNELS and graph.source(node.input[0]) in rounded:
            if graph.write_weight(node, bits):
                weights += 1
            else:
                left.append(node.name or node.output[0])
    graph.remove_unused()
    return Found(len(inputs), weights, left)


class _Graph:
    """A graph, an onnx.GraphProto, whose nodes are changed."""

    def __init__(self, graph: Any):
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def _maker(self, name: str, kind: str) -> Any:
        """Returns the node that makes a value, if it is of this kind; else None."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def source(self, name: str) -> str:
        """Returns the value that a value is, apart from the order of its entries."""
        while (node := self._maker(name, "Transpose") or self._maker(name, "Reshape")) is not None:
            name = node.input[0]
        return name

    def write_input(self, node: Any) -> bool:
        """Makes a node, which multiplies codes by a scalar scale, a DequantizeLinear; returns whether it was one."""
        if node.op_type != "Mul":
            return False
        for codes, scale in (tuple(node.input), tuple(node.input)[::-1]):
            value = self._array(scale)
            x = None if value is None or value.size != 1 else self._rounded(codes, scale)
            if x is not None:
                zero = self._add(f"{node.output[0]}_zero", np.zeros((), np.int8))
                factor = self._add(f"{node.output[0]}_scale", np.asarray(value, np.float32).reshape(()))
                quantized = f"{node.output[0]}_quantized"
                x = self._with_transpose(node, x)
                self._insert(node, "QuantizeLinear", [x, factor, zero], quantized)
                node.op_type = "DequantizeLinear"
                del node.input[:]
                node.input.extend([quantized, factor, zero])
                return True
        return False

    def _with_transpose(self, node: Any, x: str) -> str:
        """Moves a transpose, the only reader of rounded inputs, in front of the rounding; returns what is rounded.

        A runtime that finds the transpose between a DequantizeLinear and a convolution does not join these.
        """
        readers = [other for other in self._graph.node if node.output[0] in other.input]
        if len(readers) != 1 or readers[0].op_type != "Transpose":
            return x
        [reader] = readers
        output, moved = reader.output[0], f"{reader.output[0]}_floats"
        made = self._insert(node, "Transpose", [x], moved)
        made.attribute.extend(reader.attribute)
        reader.output[0] = f"{output}_unused"
        node.output[0] = output
        self._makers[output] = node
        return moved

    def _rounded(self, name: str, scale: str) -> str | None:
        """Returns `x` of `cast(cast(clip(round(x / scale)), int8), float)`; None for other values."""
        outer = self._maker(name, "Cast")
        inner = None if outer is None else self._maker(outer.input[0], "Cast")
        if inner is None or [x.i for x in inner.attribute if x.name == "to"] != [INT8]:
            return None
        name = inner.input[0]
        while (node := self._maker(name, "Min") or self._maker(name, "Max") or self._maker(name, "Clip")) is not None:
            name = next((x for x in node.input if self._array(x) is None), "")
        rounded = self._maker(name, "Round")
        divided = None if rounded is None else self._maker(rounded.input[0], "Div")
        if divided is None:
            return None
        values = [self._array(divided.input[1]), self._array(scale)]
        return divided.input[0] if values[0] is not None and values[0] == values[1] else None

    def write_weight(self, node: Any, bits: int) -> bool:
        """Makes the weight of a product a DequantizeLinear of its codes; returns whether it could be."""
        found = self._weight(node.input[1])
        if found is None or found.ndim < 2:
            return False
        axis = _CHANNELS[node.op_type] % found.ndim
        settings = {x.name: x.f if x.type == 1 else x.i for x in node.attribute} if node.op_type == "Gemm" else {}
        if settings.get("transB"):
            found = found.T
        others = tuple(i for i in range(found.ndim) if i != axis)
        largest = np.abs(found).max(others)
        scale = (np.where(largest == 0, 1, largest) / largest_code(bits)).astype(np.float32)
        whole = found / scale.reshape([-1 if i == axis else 1 for i in range(found.ndim)])
        codes = np.round(whole)
        if np.abs(whole - codes).max() > _TOLERANCE:
            return False
        name = f"{node.output[0]}_weight"
        arrays = [codes.astype(np.int8), scale, np.zeros(len(scale), np.int8)]
        names = [self._add(name + end, x) for end, x in zip(("_codes", "_scale", "_zero"), arrays, strict=True)]
        made = self._insert(node, "DequantizeLinear", names, name)
        attribute = made.attribute.add()
        attribute.name, attribute.type, attribute.i = "axis", 2, axis
        if settings.get("transB"):
            [x] = [x for x in node.attribute if x.name == "transB"]
            x.i = 0
        node.input[1] = name
        if node.op_type == "Gemm" and not settings.get("transA") and self._is_zero(node.input[2:], settings):
            node.op_type = "MatMul"  # which ONNX Runtime computes in integers, but a Gemm only with an integer bias
            del node.input[2:], node.attribute[:]
        return True

    def _is_zero(self, bias: Sequence[str], settings: dict[str, Any]) -> bool:
        """Returns whether a Gemm with these settings adds nothing to the product."""
        values = [self._array(name) for name in bias if name]
        return settings.get("alpha", 1) == 1 and all(x is not None and not x.any() for x in values)

    def _weight(self, name: str) -> np.ndarray | None:
        """Returns the numbers of a weight: a constant, codes times scales, or one of both transposed."""
        if (constant := self._array(name)) is not None:
            return constant
        if (node := self._maker(name, "Transpose")) is not None:
            found, [order] = self._weight(node.input[0]), [x.ints for x in node.attribute if x.name == "perm"]
            return None if found is None else found.transpose(list(order))
        if (node := self._maker(name, "Cast")) is not None:
            found = self._array(node.input[0])
            return None if found is None else found.astype(np.float32)
        if (node := self._maker(name, "Mul")) is not None:
            a, b = map(self._weight, node.input)
            return None if a is None or b is None else a * b
        return None

    def _array(self, name: str) -> np.ndarray | None:
        """Returns the value of a constant of floats or codes; None for any other name."""
        while (node := self._maker(name, "Identity")) is not None:
            name = node.input[0]
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type not in _TYPES:
            return None
        dtype, shape = _TYPES[tensor.data_type], tuple(tensor.dims)
        if tensor.raw_data:
            return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
        stored = tensor.float_data if tensor.data_type == FLOAT else tensor.int32_data
        return np.asarray(stored, dtype).reshape(shape)

    def _add(self, name: str, array: np.ndarray) -> str:
        """Adds a constant; returns its name."""
        tensor = self._graph.initializer.add()
        tensor.name, tensor.raw_data = name, np.ascontiguousarray(array).tobytes()
        tensor.data_type = next(kind for kind, dtype in _TYPES.items() if dtype == array.dtype)
        tensor.dims.extend(array.shape)
        self._tensors[name] = tensor
        return name

    def _insert(self, before: Any, kind: str, inputs: Sequence[str], output: str) -> Any:
        """Inserts a node before another one; returns it."""
        nodes = list(self._graph.node)
        place = next(i for i, node in enumerate(nodes) if node is before or node == before)
        made = type(before)()
        made.op_type, made.name = kind, output
        made.input.extend(inputs)
        made.output.append(output)
        self._graph.node.insert(place, made)
        made = self._graph.node[place]
        self._makers[output] = made
        return made

    def remove_unused(self) -> None:
        """Removes nodes and constants that nothing reads any more."""
        used = {x.name for x in self._graph.output}
        kept = []
        for node in reversed(list(self._graph.node)):
            if any(name in used for name in node.output):
                used.update(node.input)
                used.update(name for x in node.attribute for inner in _graphs(x) for name in _read(inner))
                kept.append(node)
        copies = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
        del self._graph.node[:]
        self._graph.node.extend(copies)
        constants = [type(x).FromString(x.SerializeToString()) for x in self._graph.initializer if x.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(constants)


def _graphs(attribute: Any) -> list[Any]:
    """Returns the graphs of an attribute, such as the body of a loop."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _read(graph: Any) -> set[str]:
    """Returns the names that a graph reads, also those from outside."""
    names = {name for node in graph.node for name in node.input} | {x.name for x in graph.output}
    return names.union(*(_read(inner) for node in graph.node for x in node.attribute for inner in _graphs(x)))
