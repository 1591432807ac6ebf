"""FLOPs, bytes and time of the layers of a program, from what XLA or onnxruntime report of its instructions.

A layer is named after the weights that an instruction reads, "hidden/0". An instruction that reads none belongs to the
layer before it. Nodes of ONNX stand for themselves.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.compile.hlo_text import HloText, Instruction
from engine.compile.instructions import executed

_ARGUMENT = re.compile(r"""op_name="([\w\[\]]+?)\['(.+?)'\]""")
_OPERATION = re.compile(r'op_name="(?:[^"]*/)?([\w.-]+)"')
_SOURCES = ("constant", "iota", "partition-id", "replica-id")
_PRODUCTS = ("Gemm", "MatMul", "FusedMatMul", "FusedGemm", "TransposeMatMul")
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a layer costs in one call.

    Attributes:
        name: name of its weights, or of a node.
        operations: the kinds of its instructions.
        seconds: measured time; 0 if unknown.
        flops: FLOPs of products and convolutions; a multiply-add counts as two.
        bytes: bytes that its instructions read and write.
    """

    name: str
    operations: tuple[str, ...]
    seconds: float
    flops: int
    bytes: int


def layers_of_hlo(text: str, seconds: Mapping[str, float], weights: str) -> list[Layer]:
    """Returns the layers of a program that XLA compiled, those that take longest first.

    Args:
        text: its HLO text.
        seconds: name of an instruction -> time of it in a call.
        weights: name of the argument that is the dict of weights, such as "args[0]"; "" without one.
    """
    program = HloText.parse(text.replace("\\'", "'"))
    names: dict[tuple[str, str], str] = {}
    arguments = [_argument(i, weights) for i in program.computations[program.entry] if i.opcode == "parameter"]
    _trace(program, program.entry, arguments, names)
    found = []
    for part in executed(program):
        i = part.instruction
        operation = _OPERATION.search(i.rest)
        kind = i.opcode if i.opcode != "fusion" else operation[1] if operation else i.name
        name = names.get((part.computation, i.name)) or f"({kind})"
        cost = (seconds.get(i.name, 0.0), part.times * part.flops, part.times * part.bytes)
        found.append(Layer(name, (kind,), *cost))
    return _summed(found)


def layers_of_onnx(nodes: Iterable[Mapping[str, Any]], equations: Mapping[str, str] | None = None) -> list[Layer]:
    """Returns the nodes of a program that onnxruntime measured, those that take longest first.

    Args:
        nodes: the events of the profile of onnxruntime, with "name" and "seconds".
        equations: name of an Einsum node -> equation.
    """
    found = []
    for node in nodes:
        name = str(node["name"]).removesuffix("_kernel_time")
        flops, unlisted = _node_flops(node, (equations or {}).get(name, ""))
        moved = sum(int(node.get(f"{part}_size") or 0) for part in ("output", "activation", "parameter"))
        found.append(Layer(name, (str(node["op_name"]),), float(node["seconds"]), flops, moved + unlisted))
    return _summed(found)


def _summed(parts: Iterable[Layer]) -> list[Layer]:
    found: dict[str, Layer] = {}
    for part in parts:
        before = found.get(part.name)
        if before is not None:
            part = Layer(
                part.name,
                tuple(dict.fromkeys(before.operations + part.operations)),
                before.seconds + part.seconds,
                before.flops + part.flops,
                before.bytes + part.bytes,
            )
        found[part.name] = part
    return sorted(found.values(), key=lambda layer: (-layer.seconds, -layer.flops, -layer.bytes))


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array in a program, or of a tuple of arrays.

    Attributes:
        weights: names of the weights that it is made of, if it is made of nothing else.
        is_weight: whether it depends on no input.
        layer: name of the layer that computes it.
        elements: of a tuple.
    """

    weights: frozenset[str] = frozenset()
    is_weight: bool = False
    layer: str = ""
    elements: tuple["_Value", ...] = ()


def _trace(
    program: HloText, computation: str, arguments: Sequence[_Value], names: dict[tuple[str, str], str]
) -> _Value:
    """Adds the layers of the instructions of a computation to `names`; returns its result.

    Args:
        program: the program.
        computation: name of the computation.
        arguments: of the computation.
        names: (computation, instruction) -> name of its layer.
    """
    values: dict[str, _Value] = {}
    value = _Value()
    for i in program.computations.get(computation, ()):
        operands = [values.get(name, _Value()) for name in i.operands]
        if i.opcode == "parameter":
            number = int(i.rest.partition(")")[0])
            value = arguments[number] if number < len(arguments) else _Value()
        elif i.opcode == "tuple":
            value = dataclasses.replace(_joined(operands), elements=tuple(operands))
        elif i.opcode == "get-tuple-element" and operands and operands[0].elements:
            index = re.search(r"index=(\d+)", i.rest)
            value = operands[0].elements[int(index[1]) if index else 0]
        elif i.opcode in ("call", "while"):
            value = _joined(operands)
            for callee in i.callees():
                value = _trace(program, callee, operands, names)
        else:
            value = _Value(is_weight=True) if i.opcode in _SOURCES else _joined(operands)
        values[i.name] = value
        names[computation, i.name] = value.layer
    return value


def _argument(parameter: Instruction, weights: str) -> _Value:
    """Returns the value of an argument of a program."""
    found = _ARGUMENT.search(parameter.rest)
    if found is None or found[1] != weights:
        return _Value()
    return _Value(frozenset({found[2]}), is_weight=True)


def _joined(operands: Sequence[_Value]) -> _Value:
    weights = frozenset().union(*(x.weights for x in operands if x.is_weight))
    is_weight = bool(operands) and all(x.is_weight for x in operands)
    before = next((x.layer for x in reversed(operands) if x.layer), "")
    return _Value(weights if is_weight else frozenset(), is_weight, _layer(weights) or before)


def _layer(weights: Iterable[str]) -> str:
    """Returns the common path of weights: "hidden/0" of its kernel and its bias."""
    paths = sorted(name.split("/")[:-1] or [name] for name in weights)
    if not paths:
        return ""
    common = []
    for first, last in zip(paths[0], paths[-1], strict=False):
        if first != last:
            break
        common.append(first)
    return "/".join(common or paths[0])


def _node_flops(node: Mapping[str, Any], equation: str) -> tuple[int, int]:
    """Returns the FLOPs of a node, and the bytes of a weight that onnxruntime has packed and does not list."""
    inputs, outputs = (
        [next(iter(x.values())) for x in node.get(f"{part}_type_shape", ()) if x] for part in ("input", "output")
    )
    if not inputs or not outputs or not outputs[0]:
        return 0, 0
    result = math.prod(outputs[0])
    if node["op_name"] in _PRODUCTS and result:
        inner = math.prod(inputs[0]) * outputs[0][-1] // result
        weight = inner * outputs[0][-1]
        is_listed = any(shape and math.prod(shape) % weight == 0 for shape in inputs[1:])
        return 2 * result * inner, 0 if is_listed else _FLOAT_BYTES * weight
    if node["op_name"] in _CONVOLUTIONS and len(inputs) > 1 and inputs[1]:
        return 2 * result * math.prod(inputs[1]) // inputs[1][0], 0
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) == 2 and [len(term) for term in terms] == [len(shape) for shape in inputs]:
        sizes = dict(zip("".join(terms), [size for shape in inputs for size in shape], strict=True))
        return 2 * math.prod(sizes.values()), 0
    return 0, 0
