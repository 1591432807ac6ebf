"""The layout: what a layer may know of the mesh while it is traced, so that no model has to.

Owns: the mesh and the rules in force, the sharding of activations by the names of their dimensions, and which axes of
the mesh some layer made use of. Does not own: the table of rules (`rules.py`), or what a layer makes of an axis
(`layers/`).

The engine enters a layout around everything that it traces; a model that is called without the engine finds the
layout of one device, under which every constraint is left out.

Terms. *Constraint*: a statement about where an activation lies, which XLA keeps. *Manual axis*: one that an enclosing
`jax.shard_map` has taken; a constraint says nothing about it.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.config.schema import Config
from engine.parallel.rules import RULES, Rules, mesh_axes

NAMED = "named:"  # before the name of a value, in what was used


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
    """Names of mesh axes (and "remat") that some layer took into account while it was traced, and those that it gave
    to values, after NAMED."""

    @property
    def platform(self) -> str:
        """Kind of the devices: cpu, gpu or tpu."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def size(self, axis: str) -> int:
        """Devices along an axis of the mesh; 1 without a mesh, and 1 for an axis that is manual already."""
        return 1 if self.mesh is None or axis in _manual_axes() else self.mesh.shape[axis]

    def use(self, axis: str) -> int:
        """As `size`, and notes that a layer makes something of this axis: it is refused where none does."""
        self.used.add(axis)
        return self.size(axis)

    def axes(self, name: str | None, size: int | None = None) -> tuple[str, ...]:
        """Returns the mesh axes of a dimension, those of more than one device that are not manual.

        Args:
            name: of the dimension.
            size: of the dimension; the axes end at the first that does not divide it. None asks for all.
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
        """Returns the PartitionSpec of an activation by the names of its dimensions; an axis is used once."""
        used: set[str] = set()
        entries: list[Any] = []
        for i, name in enumerate(names):
            axes = tuple(a for a in self.axes(name, None if shape is None else shape[i]) if a not in used)
            used.update(axes)
            entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
        return PartitionSpec(*entries)

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Returns `x` with the statement that its dimensions lie where the rules say; one name for each dimension."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.inner_mesh, self.spec(names, x.shape)))

    @property
    def inner_mesh(self) -> Any:
        """The mesh as it is seen from here: inside a `jax.shard_map` some of its axes are manual."""
        inner = jax.sharding.get_abstract_mesh()
        return self.mesh if inner.empty else inner


def layout_of(mesh: Mesh, config: Config) -> Layout:
    """Returns the layout that a config chooses."""
    sharding, train = config.sharding, config.train
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
    """Axes that an enclosing shard_map has taken."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


_ONE_DEVICE = Layout()
_current: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default=_ONE_DEVICE)


def current() -> Layout:
    """Returns the layout in force."""
    return _current.get()


@contextlib.contextmanager
def active(layout: Layout) -> Iterator[None]:
    """Puts a layout in force while something is traced."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns `x` with the statement that its dimensions lie where the rules in force say; one name for each.

    Names of activations: "batch", "sequence" (of a layer that works within a sequence), "tokens" (between layers,
    where positions may be split further), "heads", "mlp", "vocab"; None for a dimension that is not split.
    """
    return current().constrain(x, *names)
