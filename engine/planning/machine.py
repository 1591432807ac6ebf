"""A machine as the cost model sees it: devices, their rates, and the networks between them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from engine.base.host import host_memory, usable_cores
from engine.base.types import Device
from engine.config import hardware
from engine.parallel.memory import allocated_share
from engine.parallel.targets import HardwareTarget

EFFICIENCY = {"tpu": 0.7, "gpu": 0.6, "cpu": 1.0}
"""Platform -> share of the published peak that large products reach; assumed until `convoy plan --calibrate`."""
OVERLAP = {"tpu": 0.8, "gpu": 0.8, "cpu": 0.0}
"""Platform -> share of the computation during which collectives of parameters and gradients run."""
UNFUSED = {"cpu": 2.0}
"""Platform -> bytes that a compiled step moves for each byte that the formula counts, by `benchmarks.planning`: XLA:CPU
fuses less than the formula assumes."""
WHOLE = {"cpu": 8.0}
"""Platform -> how often a compiled step reads or writes each activation that `tensor` leaves whole, likewise."""
LARGE = 384
"""Smallest dimension from which a product is large."""
DISPATCH_S = 2e-4
"""Seconds that the host needs for one dispatch; assumed."""
LATENCY_S = {"tpu": 5e-6, "gpu": 2e-5, "cpu": 2e-4}
"""Platform -> seconds until a collective sends its first byte; assumed."""
HOST_BANDWIDTH = 25e9
"""Bytes/s between a device and the memory of its host; assumed: PCIe of generation 4 with 16 lanes gives 32e9."""
CORE_FLOPS, CORE_BANDWIDTH, CORE_NEW_MEMORY = 4e10, 8e9, 1e-9
"""FLOP/s, bytes/s and seconds for a byte of new memory of one CPU core; assumed until `convoy plan --calibrate`."""
CONVOLUTION = "convolution"
"""Key of `Machine.shares`."""
SHARE = "share_"
"""Prefix of the keys of `Machine.shares` in the file of the measured rates."""
ASSUMED, MEASURED, CPU_FORMULA = 0.5, 0.3, 0.7
"""Stated relative errors of a time: with assumed rates, with measured ones, and of the formula on CPUs, where XLA fuses
less than the formula assumes. They are judgments; docs/plan.md has the errors of runs."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a run and their rates.

    Attributes:
        text: name for the output.
        platform: cpu, gpu or tpu.
        count: devices.
        slice_size: devices of a slice, which share one fast network; a host of GPUs is a slice, too.
        torus: dimensions of the torus of a slice; empty where any device reaches any other at full speed.
        bf16: FLOP/s of products in bfloat16 that a device reaches.
        f32: likewise of float32 arrays.
        eight_bits: value of `train.precision` -> how many times as fast as in bfloat16 its products in eight bits are.
        memory: bytes of a device that JAX can allocate.
        bandwidth: bytes/s of this memory.
        link: bytes/s that a device sends within its slice.
        network: bytes/s that a device sends between slices.
        latency: seconds until a collective sends its first byte.
        dispatch: seconds that the host needs for a dispatch.
        new_memory: seconds in which a device gets a byte of new memory for a step; 0 where it keeps its memory.
        array: seconds that the host needs for an array of a dispatch, in addition.
        update: bytes/s of the optimizer's update; 0: those of `bandwidth`.
        shares: smallest dimension of a product, or CONVOLUTION -> share of the rate of a large product that it reaches;
            empty where all reach it.
        share: share of the memory of a device that `memory` is.
        overlap: share of the computation during which collectives of parameters and gradients run.
        source: where the rates are from.
        margin: stated relative error of the time by formula.
        measured: whether the rates are those of `convoy plan --calibrate`.
    """

    text: str
    platform: str
    count: int
    slice_size: int
    torus: tuple[int, ...]
    bf16: float
    f32: float
    memory: int
    bandwidth: float
    link: float
    network: float
    latency: float
    dispatch: float = DISPATCH_S
    new_memory: float = 0.0
    array: float = 0.0
    update: float = 0.0
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    share: float = 1.0
    overlap: float = 0.0
    host_bandwidth: float = HOST_BANDWIDTH
    source: str = ""
    margin: float = ASSUMED
    measured: bool = False
    eight_bits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def peak(self, precision: str) -> float:
        """Returns the FLOP/s that a device reaches in `train.precision`, for products in eight bits if it has them."""
        return self.f32 if precision == "float32" else self.bf16 * self.eight_bits.get(precision, 1.0)

    def product_share(self, dimension: int | None) -> float:
        """Returns the share of the rate of a large product that another one reaches, between the measured ones.

        Args:
            dimension: the smallest dimension of the product; None: it is a convolution.
        """
        if dimension is None:
            return self.shares.get(CONVOLUTION, 1.0)
        found = sorted((int(size), share) for size, share in self.shares.items() if size != CONVOLUTION)
        if not found:
            return 1.0
        sizes, shares = zip(*found, (LARGE, 1.0), strict=True)
        return float(np.interp(math.log(max(dimension, 1)), np.log(sizes), shares))

    @property
    def fused_bandwidth(self) -> float:
        """Bytes/s of those bytes that the formula counts."""
        return self.bandwidth / UNFUSED.get(self.platform, 1.0)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.count // self.slice_size

    @property
    def slice_name(self) -> str:
        """Name of a slice for the output: "slice" of TPUs, otherwise "host"."""
        return "slice" if self.platform == "tpu" else "host"

    def split(self, sizes: Mapping[str, int], between: Mapping[str, int], axis: str) -> tuple[int, int]:
        """Returns how many devices along a mesh axis share a slice, and how many slices the axis reaches.

        Args:
            sizes: axis -> devices over all slices.
            between: axis -> slices.
            axis: the axis.
        """
        if self.platform == "tpu":
            return sizes[axis] // between[axis], between[axis]
        inner = math.prod(sizes[name] for name in hardware.AXES[hardware.AXES.index(axis) + 1 :])
        within = math.gcd(sizes[axis], max(1, self.slice_size // inner))
        return within, sizes[axis] // within

    def axis_link(self, within: Mapping[str, int], axis: str) -> float:
        """Returns the bytes/s that a device sends along an axis within a slice.

        Args:
            within: axis -> devices within a slice.
            axis: the axis.
        """
        if not self.torus:
            return self.link
        return self.link * _share(self.torus, [(name, within[name]) for name in hardware.AXES], axis)


def _share(torus: Sequence[int], axes: Sequence[tuple[str, int]], axis: str) -> float:
    """Returns the share of a chip's links that a ring along a mesh axis uses: the last axis takes dimensions first.

    A dimension of the torus has 2 of the links. They form a ring where the dimension is a multiple of 4, as in v4 and
    v5p, or 16, as in v5e and v6e; otherwise a ring sends over one of them at a time.
    """
    left = list(torus)
    ring = 4 if len(torus) == 3 else 16
    for name, size in reversed(axes):
        share = 0.0
        for i in reversed(range(len(left))):
            part = math.gcd(size, left[i])
            if part > 1:
                whole = part == torus[i] and torus[i] % ring == 0
                share += (1.0 if whole else 0.5) / len(torus)
                left[i] //= part
                size //= part
        if name == axis:
            return share or 0.5 / len(torus)
    raise KeyError(axis)


def of_target(target: HardwareTarget) -> Machine:
    """Returns the machine of a target, by the hardware table."""
    row, platform = target.hardware, target.platform
    return _of_row(row, platform, target.count, target.count // target.slices, target.text, _torus(target))


def _torus(target: HardwareTarget) -> tuple[int, ...]:
    return target.shape if target.platform == "tpu" else ()


def of_devices(devices: Sequence[Device]) -> Machine:
    """Returns the machine of these devices, by the hardware table; of CPUs and unknown devices by assumption."""
    first, count = devices[0], len(devices)
    row, slices = hardware.find(first.device_kind), _count_slices(devices)
    text = f"{count} x {first.device_kind}"
    own = None if first.platform == "cpu" else (first.memory_stats() or {}).get("bytes_limit")
    if row is not None:
        found = _of_row(row, first.platform, count, count // slices, text, ())
        return dataclasses.replace(found, memory=own, share=own / row.hbm_bytes) if own else found
    memory, cores = host_memory(), usable_cores()
    share = cores / (count // slices)
    return Machine(
        text,
        first.platform,
        count,
        count // slices,
        (),
        bf16=CORE_FLOPS * share,
        f32=CORE_FLOPS * share,
        memory=own or (memory.bytes if memory else 16 * hardware.GIB) * slices // count,
        bandwidth=CORE_BANDWIDTH * share,
        link=CORE_BANDWIDTH * share / 4,
        network=1e9,
        latency=LATENCY_S["cpu"],
        new_memory=CORE_NEW_MEMORY / share if first.platform == "cpu" else 0.0,
        overlap=OVERLAP["cpu"],
        host_bandwidth=CORE_BANDWIDTH * share,
        source="rates assumed for CPUs; convoy plan --calibrate measures them",
        margin=CPU_FORMULA if first.platform == "cpu" else ASSUMED,
    )


def _count_slices(devices: Sequence[Device]) -> int:
    """Returns the number of slices of these devices. Where JAX does not number them, as on CPUs, a process is one."""
    numbered = devices[0].platform != "cpu" and hasattr(devices[0], "slice_index")
    return len({getattr(device, "slice_index" if numbered else "process_index", 0) for device in devices})


def _of_row(
    row: hardware.Hardware, platform: str, count: int, slice_size: int, text: str, torus: tuple[int, ...]
) -> Machine:
    efficiency, share = EFFICIENCY[platform], allocated_share(platform)
    return Machine(
        text,
        platform,
        count,
        slice_size,
        torus,
        bf16=row.bf16 * efficiency,
        f32=row.f32 * efficiency,
        eight_bits={name: rate / row.bf16 for name, rate in hardware.EIGHT_BITS.get(row.name, {}).items()},
        memory=round(row.hbm_bytes * share),
        bandwidth=row.hbm_bandwidth * 0.8,
        link=row.links.within * 0.8,
        network=row.links.between * 0.8,
        latency=LATENCY_S[platform],
        share=share,
        overlap=OVERLAP[platform],
        source=f"published rates of {row.name}, of which products reach {efficiency:.0%} and memory and links 80 %",
    )
