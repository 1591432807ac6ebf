"""What a compiled program costs, read from its HLO: cycles, bytes sent, matrix products, kernels and memory."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText, arrays
from engine.compile.instructions import kernel_flops
from engine.compile.step_time import attention_flops, cycles

FLOPS_PER_CYCLE = 197e12 / 1.5e9
"""Matrix products of a TPU v5e in bfloat16: 197 TFLOP/s at 1.5 GHz."""
_SPLASH = re.compile(r"splash_m\wa_(fwd|dq|dkv)")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_NO_RESULT = ("tuple", "parameter", "get-tuple-element", "while", "bitcast", "opt-barrier", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Measures:
    """Costs of one step on one device."""

    cycles: int  # that XLA estimates, loops multiplied out; 0 where it estimates none (GPUs)
    kernel_cycles: int  # cycles of attention kernels, by their FLOPs and the peak of the device
    sent: int  # bytes
    synchronous: int  # bytes sent while the device waits
    by_axis: Mapping[str, int]  # mesh axes -> bytes sent
    products: Mapping[str, int]  # dtypes of operands and result -> number of executed matrix products
    kernels: Mapping[str, int]  # attention kernel -> executions
    argument_bytes: int
    temporary_bytes: int

    @property
    def synchronous_share(self) -> float:
        """Share of the bytes that are sent while the device waits."""
        return self.synchronous / self.sent if self.sent else 0.0


def measure(executable: jax.stages.Compiled, mesh: Mesh) -> Measures:
    """Returns the costs of a compiled program."""
    text = str(executable.as_text())
    program, found = HloText.parse(text), collectives(text, mesh)
    memory = executable.memory_analysis()
    by_axis: collections.Counter[str] = collections.Counter()
    for c in found:
        by_axis[" x ".join(c.axes or ("unknown",))] += c.moved
    return Measures(
        cycles=cycles(program),
        kernel_cycles=round(attention_flops(program) / FLOPS_PER_CYCLE),
        sent=sum(c.moved for c in found),
        synchronous=sum(c.moved for c in found if not c.asynchronous),
        by_axis=dict(by_axis),
        products=products(program),
        kernels=kernels(program),
        argument_bytes=getattr(memory, "argument_size_in_bytes", 0),
        temporary_bytes=getattr(memory, "temp_size_in_bytes", 0),
    )


def products(program: HloText) -> Mapping[str, int]:
    """Returns `bf16 x bf16 -> f32` -> executed matrix products with these dtypes of operands and result."""
    found: collections.Counter[str] = collections.Counter()
    for name, instructions in program.computations.items():
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.opcode in ("dot", "convolution") or (i.opcode == "custom-call" and "__cublas$" in i.rest):
                dtypes = [dtype for x in i.operands[:2] for dtype, _ in arrays(shapes.get(x, ""))[:1]]
                found[f"{' x '.join(dtypes)} -> {arrays(i.shape)[0][0]}"] += program.runs.get(name, 0)
    return {name: times for name, times in found.items() if times}


def product_flops(program: HloText) -> int:
    """Returns the FLOPs of the matrix products. A loop whose length is not known counts as one iteration."""
    total = 0
    for name, instructions in program.computations.items():
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.opcode == "dot" and (match := re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)):
                dims = match[1]
            elif i.opcode == "custom-call" and "__cublas$" in i.rest:
                total += kernel_flops(i, shapes) * program.runs.get(name, 0)
                continue
            else:
                continue
            left, result = arrays(shapes[i.operands[0]])[0][1], arrays(i.shape)[0][1]
            contracted = math.prod(left[int(n)] for n in dims.split(",") if n)
            total += 2 * math.prod(result) * contracted * program.runs.get(name, 0)
    return total


def kernels(program: HloText) -> Mapping[str, int]:
    """Returns the name of an attention kernel -> its executions."""
    found: collections.Counter[str] = collections.Counter()
    for times, _, i in program.executed():
        if i.opcode == "custom-call":
            if match := _SPLASH.search(i.name):
                found[f"splash {match[1]}"] += times
            elif match := re.search(r'custom_call_target="__cudnn\$fmha(\w*)"', i.rest):
                found[f"cudnn {'bwd' if 'Backward' in match[1] else 'fwd'}"] += times
    return dict(found)


def largest(program: HloText, elements: int) -> list[str]:
    """Returns the results with at least so many elements on one device, as `shape opcode op_name`."""
    fused = {name for _, _, i in program.executed() if i.opcode == "fusion" for name in i.callees()}
    return [
        f"{i.shape} {i.opcode} {name[1] if (name := re.search('op_name="([^"]*)"', i.rest)) else ''}"
        for _, computation, i in program.executed()
        if computation not in fused and i.opcode not in _NO_RESULT
        if any(math.prod(dims) >= elements for _, dims in arrays(i.shape))
    ]
