"""Memory and traffic of a compiled step, on the devices of a process or on a target."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from engine.base.formatting import size_text
from engine.compile.collectives import Collective, collectives
from engine.compile.hlo_text import HloText
from engine.compile.instructions import Executed, executed
from engine.compile.program import Program
from engine.parallel.memory import HOST_MEMORY, device_bytes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled step says of itself.

    Attributes:
        memory: part -> bytes of a device.
        host: bytes of host memory for a device.
        collectives: the collectives of a step, with loops multiplied out.
        instructions: what else it computes and moves.
    """

    memory: Mapping[str, int]
    host: int
    collectives: Sequence[Collective]
    instructions: Sequence[Executed] = ()

    @property
    def bytes(self) -> int:
        """Bytes of a device."""
        return sum(self.memory.values())

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Returns the seconds of a step without collectives, where each instruction takes its FLOPs or its bytes.

        Args:
            peak: FLOP/s of products.
            bandwidth: bytes/s of memory.
        """
        return sum(i.times * max(i.flops / peak, i.bytes / bandwidth) for i in self.instructions)

    @property
    def traffic(self) -> Mapping[str, int]:
        """Mesh axes -> bytes that a device sends in a step."""
        found: collections.Counter[str] = collections.Counter()
        for c in self.collectives:
            found[" x ".join(c.axes or ("?",))] += c.moved
        return dict(found)


def read(program: Program, executable: jax.stages.Compiled) -> Compiled:
    """Returns the memory and the collectives of a compiled step.

    The state and the batch are those of the shardings. The compiler states one number for all temporary arrays:
    gradients of their shardings are a part of it, and the rest is activations and other temporary arrays.
    """
    found = executable.memory_analysis()
    state = program.abstract_state
    on_host = [x for x in jax.tree.leaves(state.opt_state) if x.sharding.memory_kind == HOST_MEMORY]
    optimizer = [x for x in jax.tree.leaves(state.opt_state) if x.sharding.memory_kind != HOST_MEMORY]
    gradients = sum(
        math.prod(sharding.shard_shape(state.params[path].shape)) * state.params[path].dtype.itemsize
        for path, sharding in program.spec.grad_shardings.items()
        if path in program.spec.model.trained
    )
    temporary = getattr(found, "temp_size_in_bytes", 0)
    gradients = min(gradients, temporary)
    memory = {
        "parameters": _size((state.params, state.ema, state.model_state)),
        "optimizer": _size(optimizer),
        "batch": _size(program.abstract_batch),
        "gradients": gradients,
        "activations and temporary arrays": temporary - gradients,
        "program": getattr(found, "generated_code_size_in_bytes", 0),
    }
    host = _size(on_host) + getattr(found, "host_temp_size_in_bytes", 0)
    text = executable.as_text() or ""
    return Compiled(memory, host, collectives(text, program.mesh), list(executed(HloText.parse(text))))


def describe(compiled: Compiled, limit: int | None) -> str:
    """Returns a table of the memory of a device.

    Args:
        compiled: the compiled step.
        limit: bytes of memory of a device; None if unknown.
    """
    of = f" of {size_text(limit)} ({compiled.bytes / limit:.0%})" if limit else ""
    lines = [f"memory of a device during a step: {size_text(compiled.bytes)}{of}"]
    lines += [f"  {name}: {size_text(size)}" for name, size in compiled.memory.items() if size]
    if compiled.host:
        lines.append(f"memory of the host, for each device: {size_text(compiled.host)}")
    if limit and compiled.bytes > limit:
        lines.append(f"  warning: it does not fit by {size_text(compiled.bytes - limit)}")
    return "\n".join(lines)


def _size(tree: object) -> int:
    return sum(map(device_bytes, jax.tree.leaves(tree)))
