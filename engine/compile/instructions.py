"""What a compiled program computes and moves, read from its HLO text with loops multiplied out.

XLA fuses element-wise operations: of a fusion only the arrays that it reads and writes move. A fusion that reads a
slice of an array moves the slice, and one that updates a part of an array in place moves the part. Of custom calls, the
kernels of attention and the products of cuBLAS have FLOPs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from engine.compile.collectives import KINDS
from engine.compile.hlo_text import HloText, Instruction, arrays, shape_bytes

_CALLS = ("while", "call", "conditional", "async-start")
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "partition-id", "replica-id",
    "after-all", *_CALLS, *(f"{kind}{part}" for kind in KINDS for part in ("", "-start", "-done")),
)  # fmt: skip
"""Instructions that move nothing, those that only call others, and collectives, which count apart."""
_FUSIONS = ("fusion", "fusion-start")  # a GPU runs some concurrently with others
_VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_CUDNN = re.compile(r'custom_call_target="__cudnn\$fmha(\w*)"')
_SPLASH = re.compile(r"splash_m\wa_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs `times`: FLOPs of products, and bytes that are read and written, of one execution."""

    times: int
    flops: int
    bytes: int
    computation: str  # name of the computation of the instruction
    instruction: Instruction


def executed(program: HloText) -> Iterator[Executed]:
    """Yields the instructions of a program that compute or move something."""
    inner = _inner(program)
    for name, instructions in program.computations.items():
        times = program.runs.get(name, 0)
        if not times or name in inner:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.opcode not in _FREE and not i.opcode.endswith(("-done", "-update")):
                yield Executed(times, _flops(program, i, shapes), _bytes(program, i, shapes), name, i)


def _inner(program: HloText) -> set[str]:
    """Returns the computations inside of an instruction: of a fusion, a reduction or a sort."""
    return {
        callee
        for instructions in program.computations.values()
        for i in instructions
        if i.opcode not in _CALLS
        for callee in i.callees()
    }


def _flops(program: HloText, i: Instruction, shapes: Mapping[str, str]) -> int:
    if i.opcode in _FUSIONS:
        found = 0
        for body in (program.computations.get(name, ()) for name in i.callees("calls")):
            known = {x.name: x.shape for x in body}
            found += sum(_flops(program, x, known) for x in body)
        return found
    result = sum(math.prod(dims) for _, dims in arrays(i.shape))
    if i.opcode == "dot" and (match := _CONTRACTED.search(i.rest)):
        left = arrays(shapes[i.operands[0]])[0][1]
        return 2 * result * math.prod(left[int(n)] for n in match[1].split(",") if n)
    if i.opcode == "convolution" and (match := _LABELS.search(i.rest)):
        kernel = arrays(shapes[i.operands[1]])[0][1]
        return 2 * result * math.prod(kernel) // kernel[match[1].index("o")]
    return kernel_flops(i, shapes) if i.opcode == "custom-call" else 0


def kernel_flops(i: Instruction, shapes: Mapping[str, str]) -> int:
    """Returns the FLOPs of a custom call: a kernel of attention or a product of cuBLAS; 0 for others.

    Attention counts as causal: half of all pairs of positions.

    Args:
        i: the custom call.
        shapes: name of an instruction of its computation -> shape.
    """
    if flops := splash_flops(i):
        return flops
    if match := _CUDNN.search(i.rest):
        batch, *middle, head_dim = arrays(shapes[i.operands[0]])[0][1]
        time, heads = max(middle), min(middle)  # the text does not say which is which, and time is nearly always longer
        return (5 if "Backward" in match[1] else 2) * batch * heads * time * time * head_dim
    if "__cublas$" in i.rest and (match := _CUBLAS.search(i.rest)):
        left, result = arrays(shapes[i.operands[0]])[0][1], arrays(i.shape)[0][1]
        return 2 * math.prod(result) * math.prod(left[int(n)] for n in re.findall(r"\d+", match[1]))
    return 0


def splash_flops(i: Instruction) -> int:
    """Returns the FLOPs of a custom call that is a kernel of splash attention, which a TPU runs; 0 for others."""
    if not (match := _SPLASH.search(i.name)):
        return 0
    # A device with one row has a result without the dimension of the rows.
    *rows, heads, time, head_dim = max((dims for _, dims in arrays(i.shape)), key=len)
    return _SPLASH_PRODUCTS[match[1]] * math.prod(rows) * heads * time * time * head_dim


def _bytes(program: HloText, i: Instruction, shapes: Mapping[str, str]) -> int:
    written = shape_bytes(i.shape)
    reads = [shape_bytes(shapes.get(name, "")) for name in i.operands]
    if i.opcode in _FUSIONS and (bodies := i.callees("calls")):
        return _fusion_bytes(program, program.computations.get(bodies[0], ()), reads)
    if i.opcode in _SLICES:
        return 2 * written
    if i.opcode == _UPDATE:
        return 2 * reads[1]
    return written + sum(reads)


def _fusion_bytes(program: HloText, body: Sequence[Instruction], reads: Sequence[int]) -> int:
    """Returns the bytes that a fusion moves. `reads`: bytes of its operands."""
    known = {x.name: x for x in body}
    numbers = {x.name: int(x.rest.partition(")")[0]) for x in body if x.opcode == "parameter"}
    root = body[-1]
    if root.opcode == "fusion" and len(numbers) == len(body) - 1:  # all that a concurrent fusion calls
        inner = program.computations.get(root.callees("calls")[0], ())
        return _fusion_bytes(program, inner, [reads[numbers[name]] for name in root.operands])
    users: dict[str, list[Instruction]] = {}
    for x in body:
        for name in x.operands:
            users.setdefault(name, []).append(x)

    def read(name: str, whole: int) -> int:
        """Returns the bytes of an operand that the fusion reads, through views."""
        if name == root.name:
            return whole
        return sum(read(x.name, whole) if x.opcode in _VIEWS else _part(x, name, whole) for x in users.get(name, ()))

    total = sum(min(reads[i], read(name, reads[i])) for name, i in numbers.items())
    results = [known[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for x in results:
        while x.opcode == "bitcast":
            x = known[x.operands[0]]
        total += shape_bytes(known[x.operands[1]].shape if x.opcode == _UPDATE else x.shape)
    return total


def _part(user: Instruction, name: str, whole: int) -> int:
    """Returns the bytes of an operand of a fusion that an instruction in it reads."""
    if not user.operands or user.operands[0] != name:
        return whole
    return shape_bytes(user.shape) if user.opcode in _SLICES else 0 if user.opcode == _UPDATE else whole
