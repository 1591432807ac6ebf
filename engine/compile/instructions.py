"""What a compiled program computes and moves, read from its HLO text with loops multiplied out.

XLA fuses element-wise operations: of a fusion only the arrays that it reads and writes move. A fusion that reads a
slice of an array moves the slice, and one that updates a part of an array in place moves the part.
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
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs `times`: FLOPs of products, and bytes that are read and written, of one execution."""

    times: int
    flops: int
    bytes: int


def executed(program: HloText) -> Iterator[Executed]:
    """Yields the instructions of a program that compute or move something. Kernels in custom calls count no FLOPs."""
    inner = _inner(program)
    for name, instructions in program.computations.items():
        times = program.runs.get(name, 0)
        if not times or name in inner:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.opcode not in _FREE:
                yield Executed(times, _flops(program, i, shapes), _bytes(program, i, shapes))


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
    if i.opcode == "fusion":
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
    return 0


def _bytes(program: HloText, i: Instruction, shapes: Mapping[str, str]) -> int:
    written = shape_bytes(i.shape)
    reads = [shape_bytes(shapes.get(name, "")) for name in i.operands]
    if i.opcode == "fusion" and (bodies := i.callees("calls")):
        return _fusion_bytes(program.computations.get(bodies[0], ()), reads)
    if i.opcode in _SLICES:
        return 2 * written
    if i.opcode == _UPDATE:
        return 2 * reads[1]
    return written + sum(reads)


def _fusion_bytes(body: Sequence[Instruction], reads: Sequence[int]) -> int:
    """Returns the bytes that a fusion moves. `reads`: bytes of its operands."""
    known = {x.name: x for x in body}
    users: dict[str, list[Instruction]] = {}
    for x in body:
        for name in x.operands:
            users.setdefault(name, []).append(x)
    total = 0
    for x in body:
        if x.opcode == "parameter":
            whole = reads[int(x.rest.partition(")")[0])]
            total += min(whole, sum(_part(user, x.name, whole) for user in users.get(x.name, ())))
    results = [known[name] for name in body[-1].operands] if body[-1].opcode == "tuple" else [body[-1]]
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
