"""What a mesh communicates of parameters and gradients in a step, by the sharding of each parameter."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

type Spec = Sequence[tuple[str, ...]]
"""Mesh axes of each dimension of a parameter."""

COPIES = ("pipeline", "fsdp", "expert", "context")
"""Axes besides `data` that split rows or sequences: the gradients of parameters that they do not split are summed."""


class Weight(NamedTuple):
    """A parameter of a model on a mesh."""

    shape: tuple[int, ...]
    spec: Spec
    trained: bool
    """Whether it has a gradient."""
    stacked: bool
    """Whether it belongs to a stack of layers."""


@dataclasses.dataclass
class WeightTraffic:
    """Bytes of the arrays that the devices of a group gather, scatter or sum for a microbatch.

    Attributes:
        gathered: parameters that are gathered over `fsdp`, in each pass.
        scattered: their gradients, which are scattered.
        collectives: number of gathers and scatters.
        summed: gradients that the devices of `data` sum.
        zero1: the part of them that ZeRO-1 divides over `data`, as large as the parameters that it gathers.
        copied: axis -> gradients of which each device of the axis has a part.
    """

    gathered: float = 0.0
    scattered: float = 0.0
    collectives: int = 0
    summed: float = 0.0
    zero1: float = 0.0
    copied: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(COPIES, 0.0))


def weight_traffic(
    weights: Iterable[Weight],
    axes: Mapping[str, int],
    *,
    width: int,
    loops: int,
    passes: float = 2.0,
    sums: float = 1.0,
    ticks: float = 1.0,
) -> WeightTraffic:
    """Returns the traffic of the parameters of a model.

    Args:
        weights: the parameters.
        axes: mesh axis -> devices.
        width: bytes of a number in the precision of the computation.
        loops: arrays of a parameter of a stack that are gathered one after the other: one for each layer of a loop.
        passes: how often the parameters of a stack are gathered.
        sums: how often the gradients of a stack are scattered, and summed over `fsdp`.
        ticks: how often they are summed over axes other than `fsdp` and `data`.
    """
    found = WeightTraffic()
    for shape, spec, trained, stacked in weights:
        size = math.prod(shape) * width / math.prod(axes[a] for entry in spec for a in entry if a != "fsdp")
        split = any("fsdp" in entry for entry in spec) and axes["fsdp"] > 1
        times = (passes, sums) if stacked else (1.0, 1.0)
        if split:
            found.gathered += size * times[0]
            found.collectives += round(sum(times)) * (loops if stacked else 1)
        if not trained:
            continue
        found.scattered += size * times[1] if split else 0.0
        size /= axes["fsdp"] if split else 1
        found.summed += size  # once, also in a pipeline
        if zero1_divides(shape, spec, axes):
            found.zero1 += size
        for axis in COPIES:
            if not any(axis in entry for entry in spec):
                found.copied[axis] += size * (times[1] if axis == "fsdp" or not stacked else ticks)
    return found


def zero1_divides(shape: Sequence[int], spec: Spec, axes: Mapping[str, int]) -> bool:
    """Returns whether ZeRO-1 can split a parameter over `data`."""
    entries = [*spec, *[()] * (len(shape) - len(spec))]
    shard = [size // math.prod(axes[a] for a in entry) for size, entry in zip(shape, entries, strict=True)]
    return any(size % axes["data"] == 0 and size >= axes["data"] for size in shard)
