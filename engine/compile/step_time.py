"""Estimates the time of a compiled step, to compare programs of one model for the same devices.

XLA estimates the cycles of a program for TPUs, without kernels and without waiting for collectives. For other devices
each instruction takes the longer of its FLOPs and its bytes, at published rates: a roofline (Williams et al. 2009).
"""

import re

import jax
from jax.sharding import Mesh

from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText
from engine.compile.instructions import executed, splash_flops
from engine.config import hardware

CLOCKS = {
    "TPU v3 core": 0.94e9,
    "TPU v4": 1.05e9,
    "TPU v5e": 1.5e9,
    "TPU v5p": 1.75e9,
    "TPU v6e": 1.75e9,
}
"""Name in the hardware table -> cycles a second: the published peak over the FLOPs of the matrix units in a cycle."""
CLOCK = 1.5e9
"""Cycles a second of other TPUs; assumed."""
CPU_FLOPS, CPU_BANDWIDTH, CPU_LINK = 4e10, 8e9, 2e9
"""FLOP/s, bytes/s of memory and bytes/s between devices where the hardware table has no row, as on CPUs; assumed."""
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def step_seconds(executable: jax.stages.Compiled, mesh: Mesh, precision: str) -> float:
    """Returns the estimated seconds in which a compiled program runs, and those in which it waits for collectives.

    Args:
        executable: the program.
        mesh: its devices.
        precision: `train.precision`.
    """
    text = str(executable.as_text())
    program, row = HloText.parse(text), hardware.find(mesh.devices.flat[0].device_kind)
    peak, bandwidth, link = CPU_FLOPS, CPU_BANDWIDTH, CPU_LINK
    if row is not None:
        peak, bandwidth, link = row.peak(precision), row.hbm_bandwidth, row.links.within
    waiting = sum(c.moved for c in collectives(text, mesh) if not c.asynchronous) / link
    if found := cycles(program):
        clock = CLOCKS.get(row.name, CLOCK) if row is not None else CLOCK
        return found / clock + attention_flops(program) / peak + waiting
    return sum(i.times * max(i.flops / peak, i.bytes / bandwidth) for i in executed(program)) + waiting


def cycles(program: HloText) -> int:
    """Returns the sum of XLA's estimates, which only TPU programs have; loops are multiplied out.

    It leaves out kernels and the time that the device waits for collectives.
    """
    return sum(
        times * int(match[1])
        for times, _, instruction in program.executed()
        if (match := _CYCLES.search(instruction.rest))
    )


def attention_flops(program: HloText) -> int:
    """Returns the FLOPs of the attention kernels of a program for TPUs."""
    return sum(times * splash_flops(i) for times, _, i in program.executed() if i.opcode == "custom-call")
