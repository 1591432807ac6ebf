"""The layout: the mesh, the sharding rules and the ways of splitting that are in force while a layer is traced.

The engine activates a layout around everything that it traces, so that no model names a mesh. A model that is called
without the engine gets the layout of one device, which has no sharding constraints. A *manual axis* is a mesh axis of
an enclosing `jax.shard_map`; sharding constraints leave it out.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from engine.config.schema import Sharding, Train
from engine.parallel.rules import RULES, Rules, mesh_axes

NAMED = "named:"  # prefix of the name of a value in Layout.used


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, the rules, and the ways of splitting that the sections `sharding` and `train` of a config choose."""

    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=lambda: RULES)
    context: str = "ring"
    microbatches: int | None = None
    repeats: int = 1
    remat: str = "none"
    zero1: bool = False
    offload_optimizer: bool = False
    used: set[str] = dataclasses.field(default_factory=set, compare=False)
    """What traced layers used: names of mesh axes, "remat", and NAMED + the name of each value that a layer named."""

    @property
    def platform(self) -> str:
        """Platform of the devices: cpu, gpu or tpu."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def size(self, axis: str) -> int:
        """Returns the devices along an axis of the mesh; 1 without a mesh and for a manual axis."""
        return 1 if self.mesh is None or axis in _manual_axes() else self.mesh.shape[axis]

    def use(self, axis: str) -> int:
        """Returns `size` and records that a layer uses this axis. An axis that no layer uses is refused."""
        self.used.add(axis)
        return self.size(axis)

    def axes(self, name: str | None, size: int | None = None) -> tuple[str, ...]:
        """Returns the mesh axes of a dimension: those of several devices that are not manual.

        Args:
            name: of the dimension.
            size: of the dimension. The axes end before the first that does not divide it. None returns all.
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
        """Returns the PartitionSpec of an activation by the names of its dimensions. It uses each mesh axis once."""
        used: set[str] = set()
        entries: list[str | tuple[str, ...] | None] = []
        for i, name in enumerate(names):
            axes = tuple(a for a in self.axes(name, None if shape is None else shape[i]) if a not in used)
            used.update(axes)
            entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
        return PartitionSpec(*entries)

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Returns `x` with the sharding that the rules give its dimensions; one name for each dimension."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.inner_mesh, self.spec(names, x.shape)))

    @property
    def inner_mesh(self) -> Mesh | AbstractMesh:
        """The mesh in the current context: inside a `jax.shard_map` some of its axes are manual."""
        inner = jax.sharding.get_abstract_mesh()
        if not inner.empty:
            return inner
        assert self.mesh is not None
        return self.mesh


def layout_of(mesh: Mesh, sharding: Sharding, train: Train) -> Layout:
    """Returns the layout that two sections of a config choose."""
    return Layout(
        mesh=mesh,
        rules={**RULES, **sharding.rules},
        context=sharding.context,
        microbatches=sharding.microbatches,
        repeats=sharding.repeats,
        remat=train.remat,
        zero1=sharding.zero1,
        offload_optimizer=train.offload_optimizer,
    )


def _manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes of an enclosing `jax.shard_map`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


_ONE_DEVICE = Layout()
_current: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default=_ONE_DEVICE)


def current() -> Layout:
    """Returns the layout in force."""
    return _current.get()


@contextlib.contextmanager
def active(layout: Layout) -> Iterator[None]:
    """Puts a layout in force for the duration of a trace."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns `x` with the sharding that the rules in force give its dimensions; one name for each dimension.

    Names of activations: "batch", "sequence" (positions within a layer), "tokens" (positions between layers, which may
    be split further), "heads", "mlp", "vocab"; None for a dimension that is not split.
    """
    return current().constrain(x, *names)
