"""Models the time of a step on a device that is absent, and how much of it is spent on products.

A TPU: the cycles that XLA estimates for each instruction. A GPU: each kernel takes the longer of its FLOPs at the peak
and its bytes at the bandwidth of memory, a roofline (Williams et al. 2009); the starts of kernels are not modelled.
"""

import dataclasses
import re

from jax.sharding import Mesh

from benchmarks.aot.small import product_flops
from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText
from engine.compile.instructions import executed
from engine.compile.step_time import CLOCKS
from engine.config.hardware import Hardware

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class ModelledTime:
    """Seconds of one step on one device.

    Attributes:
        products: instructions that multiply matrices or convolve, with what XLA has fused into them.
        others: all other instructions.
        waiting: collectives during which the device does nothing else, at the rate of its links.
    """

    products: float
    others: float
    waiting: float

    @property
    def total(self) -> float:
        """Seconds of all three."""
        return self.products + self.others + self.waiting

    @property
    def outside(self) -> float:
        """Share of the time outside of products."""
        return 1 - self.products / self.total


def modelled_time(text: str, mesh: Mesh, device: Hardware, steps: int = 1) -> ModelledTime:
    """Returns the modelled time of a step of a program of `steps` steps in bfloat16.

    Args:
        text: `as_text()` of the compiled program.
        mesh: its devices.
        device: their rates.
        steps: steps of the program.
    """
    program = HloText.parse(text)
    waiting = sum(c.moved for c in collectives(text, mesh) if not c.asynchronous) / device.links.within
    products = others = 0.0
    for i in executed(program):
        flops = product_flops(program, i.computation, i.instruction)
        if device.name in CLOCKS:
            match = _CYCLES.search(i.instruction.rest)
            seconds = int(match[1]) / CLOCKS[device.name] if match else 0.0
        else:
            seconds = max(flops / device.bf16, i.bytes / device.hbm_bandwidth)
        if flops:
            products += i.times * seconds
        else:
            others += i.times * seconds
    return ModelledTime(products / steps, others / steps, waiting / steps)
