"""Compiles operations of perception for TPUs and GPUs that are absent, and says what a call costs on one device.

The value and its gradients are one program, of a batch that all devices split. `benchmarks.perception --aot` prints it.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.aot.measures import measure
from benchmarks.aot.small import step_costs
from benchmarks.perception_cases import Case
from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText, shape_bytes
from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from engine.parallel.targets import devices

ROWS = 2
"""Examples of each device."""
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]\{([\d,]*)(?::T\(([\d,]+)\))?")
_UNSTORED = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier")


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one call on one device.

    Attributes:
        cycles: that XLA estimates for a TPU, with loops multiplied out; 0 for a GPU.
        launches: instructions that run: on a GPU, kernels.
        bytes: read from and written to memory.
        padding: share of the bytes of results that fills tiles, such as 128 lanes of a TPU.
        temporary: bytes of memory in addition to inputs and results.
        collectives: operations between devices, without those that sum gradients of inputs that have no batch.
        rounds_unknown: whether there is a loop whose length depends on values; it counts as one round.
    """

    cycles: int
    launches: float
    bytes: float
    padding: float
    temporary: int
    collectives: int
    rounds_unknown: bool


def costs(case: Case, way: Callable[..., Any], target: str) -> Costs:
    """Returns the costs of a way to compute a case, whose inputs have `ROWS` examples for each device of a target."""
    there = devices(target)
    mesh = make_mesh(MeshSpec(data=len(there)), there)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))

    def put(x: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), x)

    inputs = jax.eval_shape(case.inputs, jax.random.key(0))
    inputs = tuple(put(x, whole if n in case.shared else split) for n, x in enumerate(inputs))
    value = put(jax.eval_shape(way, *inputs), split)
    # Gradients lie where their inputs do.
    places = tuple(jax.tree.map(lambda x: x.sharding, x) for x in inputs[: case.differentiable])
    with active(Layout(mesh=mesh)):
        program = jax.jit(differentiated(way, case.differentiable), out_shardings=(split, places))
        executable = program.lower(inputs, value).compile()
    text = str(executable.as_text())
    hlo, step = HloText.parse(text), step_costs(executable, mesh)
    kernels = [x.size * x.dtype.itemsize for n in case.shared for x in jax.tree.leaves(inputs[n])]
    allowed = len(kernels) if case.differentiable else 0
    between = [c for c in collectives(text, mesh) if c.kind != "all-reduce" or c.bytes > sum(kernels[:allowed])]
    found = measure(executable, mesh)
    return Costs(
        cycles=found.cycles,
        launches=step.launches,
        bytes=step.bytes,
        padding=padding(hlo),
        temporary=found.temporary_bytes,
        collectives=sum(c.count for c in between),
        rounds_unknown=any(i.opcode == "while" and hlo.trip_count(i) is None for _, _, i in hlo.executed()),
    )


def differentiated(way: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns a function of inputs and of a cotangent: the value, and the gradients of the first `count` inputs."""

    def run(inputs: tuple[Any, ...], cotangent: Any) -> tuple[Any, tuple[Any, ...]]:
        if not count:
            return way(*inputs), ()
        value, pull = jax.vjp(lambda *first: way(*first, *inputs[count:]), *inputs[:count])
        return value, pull(cotangent)

    return run


def padding(program: HloText) -> float:
    """Returns the share of the bytes of all results that pads arrays to the tiles of their layouts."""
    inner = {name for _, _, i in program.executed() if i.opcode not in _UNSTORED for name in i.callees()}
    stored = tiles = 0
    for times, computation, i in program.executed():
        if computation not in inner and i.opcode not in _UNSTORED:
            stored += times * shape_bytes(i.shape)
            tiles += times * tiled_bytes(i.shape)
    return max(1 - stored / tiles, 0.0) if tiles else 0.0  # some small shapes have no layout


def tiled_bytes(shape: str) -> int:
    """Returns the bytes of the arrays in the text of a shape with layouts, such as `f32[20,3]{1,0:T(8,128)}`."""
    total = 0
    for dtype, dims, order, tile in _ARRAY.findall(shape):
        sizes = [int(n) for n in dims.split(",") if n]
        by_stride = [sizes[int(n)] for n in order.split(",") if n]  # the fastest dimension first
        for n, size in enumerate(reversed([int(n) for n in tile.split(",") if n])):
            if n < len(by_stride):
                by_stride[n] = -(-by_stride[n] // size) * size
        one = shape_bytes(f"{dtype}[1024]") / 1024
        total += math.ceil(one * math.prod(by_stride))
    return total
