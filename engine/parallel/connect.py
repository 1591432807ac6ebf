"""Connects the CPU devices of several processes before the first collective of a run.

Gloo, which JAX uses between CPUs, connects a group of devices at its first collective, and fails if a process comes
more than 30 s after another. JAX has no setting for that. Later collectives wait as long as they must.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.cluster import group


def connect(mesh: Mesh) -> None:
    """Lets all processes meet, however late they come, and connects the devices along each set of axes of a mesh.

    Groups of devices that follow no axes, which XLA seldom forms, are connected when a program uses them: each program
    that a run compiles lets the processes meet before it runs first (`group.meet`).

    Args:
        mesh: a mesh of all devices of all processes.

    Raises:
        LostPeer: a process does not come within `timeouts.AGREE_S`.
    """
    if group.count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    run = _program(mesh)
    group.meet("the connection of all devices")
    jax.block_until_ready(run())


def _program(mesh: Mesh) -> Callable[[], jax.Array]:
    """Returns a compiled program with one sum over each set of axes."""
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    sets = [chosen for size in range(1, len(axes) + 1) for chosen in itertools.combinations(axes, size)]

    def sums(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.lax.psum(x, chosen) for chosen in sets])

    spec = PartitionSpec(mesh.axis_names)
    one = np.ones(1, np.float32)
    x = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, spec), lambda index: one)
    mapped = jax.shard_map(sums, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled = jax.jit(mapped).lower(x).compile()
    return lambda: compiled(x)
