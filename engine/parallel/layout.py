"""The layout: the mesh, the sharding rules and the parallelism settings that are active while a layer is traced.

The engine activates a layout around everything that it traces, so that no model names a mesh. Without the engine, a
model gets the layout of one device, which has no sharding constraints. A *manual axis* is a mesh axis of an enclosing
`jax.shard_map`; sharding constraints leave it out.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from engine.config import hardware
from engine.config.schema import Sharding, Train
from engine.config.setting import AUTO
from engine.parallel.rules import RULES, Rules, mesh_axes, to_entry

NAMED = "named:"  # prefix of the names of values in Layout.used
QUANTIZED = "quantized"  # in Layout.used if a layer has products in eight bits
ATTENTION = "attention:"  # prefix of the sizes of each attention in Layout.used, "positions,heads,kv_heads,causal"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, the sharding rules, and the parallelism settings of the config sections `sharding` and `train`."""

    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=lambda: RULES)
    context: str = "ring"
    microbatches: int | None = None
    repeats: int = 1
    precision: str = "float32"
    """`train.precision`."""
    schedule: str = "gpipe"
    remat: str = "none"
    zero1: bool = False
    offload_optimizer: bool = False
    counts_flops: bool = False
    """Whether the trace only counts model FLOPs (`compile/flops.py`) and is never compiled. Layers then use
    their plain formula for one device, without kernels, tuning, chunks and rematerialisation."""
    portable: bool = False
    """Whether the traced program is for other runtimes, such as ONNX Runtime. Layers then use their plain formula,
    without kernels, tuning and loops over layers."""
    used: set[str] = dataclasses.field(default_factory=set, compare=False)
    """Features that the traced layers use: mesh axes, "remat", QUANTIZED, NAMED + the name of each value, and ATTENTION
    + the sizes of each attention."""

    @property
    def quantizes(self) -> bool:
        """Whether layers compute their products in eight bits (`layers/quantization.py`)."""
        return self.precision in hardware.QUANTIZED and not self.counts_flops

    @property
    def gathers_over_data(self) -> bool:
        """Whether layers gather the weights that ZeRO-1 splits over `data`, each in its turn: on TPUs in bfloat16.

        XLA:TPU waits for a gather of all weights at the start of a step.
        """
        gathers = self.platform == "tpu" and self.size("data") > 1 and self.size("tensor") == 1
        return self.zero1 and gathers and self.precision == "bfloat16"

    @property
    def platform(self) -> str:
        """Platform of the devices: cpu, gpu or tpu; "reference" for a trace that only counts FLOPs, or "portable"."""
        if self.counts_flops:
            return "reference"
        if self.portable:
            return "portable"
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def size(self, axis: str) -> int:
        """Returns the number of devices along a mesh axis; 1 without a mesh and for a manual axis."""
        return 1 if self.mesh is None or axis in _manual_axes() else self.mesh.shape[axis]

    def use(self, axis: str) -> int:
        """Returns `size` and records that a layer uses this axis; the engine rejects axes that no layer uses."""
        self.used.add(axis)
        return self.size(axis)

    def axes(self, name: str | None, size: int | None = None) -> tuple[str, ...]:
        """Returns the mesh axes of a dimension, without manual axes and axes of one device.

        Args:
            name: name of the dimension.
            size: size of the dimension: the result ends before the first axis that does not divide it. None returns
                all axes.

        Raises:
            ShardingError: the name has no rule, or its rule has an unknown mesh axis.
        """
        if self.mesh is None or name is None:
            return ()
        found: list[str] = []
        for axis in mesh_axes("activation", name, self.rules):
            if self.mesh.shape[axis] == 1 or axis in _manual_axes():
                continue
            if size is not None:
                if size % self.mesh.shape[axis]:
                    break
                size //= self.mesh.shape[axis]
            found.append(axis)
        return tuple(found)

    def spec(self, names: Sequence[str | None], shape: Sequence[int] | None = None) -> PartitionSpec:
        """Returns the PartitionSpec of an activation by the names of its dimensions. Each mesh axis is used once."""
        used: set[str] = set()
        entries: list[str | tuple[str, ...] | None] = []
        for i, name in enumerate(names):
            axes = tuple(a for a in self.axes(name, None if shape is None else shape[i]) if a not in used)
            used.update(axes)
            entries.append(to_entry(axes))
        return PartitionSpec(*entries)

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Returns `x` with the sharding that the rules assign to its dimensions; one name for each dimension."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.inner_mesh, self.spec(names, x.shape)))

    @property
    def inner_mesh(self) -> Mesh | AbstractMesh:
        """The mesh of the current context; inside a `jax.shard_map` some of its axes are manual."""
        inner = jax.sharding.get_abstract_mesh()
        if not inner.empty:
            return inner
        assert self.mesh is not None
        return self.mesh


def make_layout(mesh: Mesh, sharding: Sharding, train: Train) -> Layout:
    """Returns the layout for a mesh and the config sections `sharding` and `train`."""
    return Layout(
        mesh=mesh,
        rules={**RULES, **sharding.rules},
        context=sharding.context,
        microbatches=sharding.microbatches,
        repeats=sharding.repeats,
        precision=train.precision,
        schedule=sharding.schedule,
        remat="none" if train.remat == AUTO else train.remat,  # before the choice, only forward passes are traced
        zero1=sharding.zero1,
        offload_optimizer=train.offload_optimizer,
    )


def in_stage() -> bool:
    """Returns whether the trace is within a stage of a pipeline, where no layer has a `jax.shard_map` over rows."""
    return "pipeline" in _manual_axes()


def _manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes of an enclosing `jax.shard_map`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


_ONE_DEVICE = Layout()
_current: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default=_ONE_DEVICE)


def current() -> Layout:
    """Returns the active layout."""
    return _current.get()


@contextlib.contextmanager
def active(layout: Layout) -> Iterator[None]:
    """Makes a layout the active one within a `with` block, usually around a trace."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def with_layout[**P, R](layout: Layout, function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function so that it is traced with a layout active."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with active(layout):
            return function(*args, **kwargs)

    return call


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns `x` with the sharding that the active rules assign to its dimensions; one name for each dimension.

    Names of activations: "batch", "sequence" (positions within a layer), "tokens" (positions between layers, which may
    be split over more axes), "heads", "mlp", "vocab"; None for a dimension that is not split.
    """
    return current().constrain(x, *names)
