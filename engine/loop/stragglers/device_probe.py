"""A small fixed computation that each device of this process performs alone, without a collective.

Its duration shows a slow device. The duration of a step does not: all processes wait for the slowest device in it.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.base.types import Device

_REPEATS = 2  # the shorter one counts: another thread or program may interrupt one of them
_AXIS = "device"


class Probed(NamedTuple):
    """Result of a probe."""

    seconds: float
    """Duration on the slowest device."""
    device: int
    """Id of that device."""


class DeviceProbe:
    """The compiled probe.

    Args:
        devices: local devices, all of one kind.
    """

    def __init__(self, devices: Sequence[Device]):
        self._devices = list(devices)
        mesh = Mesh(np.array(self._devices), (_AXIS,))
        # About 0.1 ms on a CPU core, and 0.3 to 1.5 ms on an accelerator: longer than its launch.
        size, products, dtype = (64, 8, jnp.float32) if self._devices[0].platform == "cpu" else (2048, 16, jnp.bfloat16)
        matrix = np.random.default_rng(0).normal(0, size**-0.5, (size, size))
        rows = jnp.asarray(np.tile(matrix, (len(self._devices), 1)), dtype)  # a matrix for each device

        def probe(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, products, lambda _, y: jnp.tanh(y @ x), x)

        spec = PartitionSpec(_AXIS)
        self._argument = jax.device_put(rows, NamedSharding(mesh, spec))
        sharded = jax.shard_map(probe, mesh=mesh, in_specs=spec, out_specs=spec)
        self._run = jax.jit(sharded).lower(self._argument).compile()
        self.measure()  # the first call is slower

    def measure(self) -> Probed:
        """Runs the probe on all devices at once and waits for it. The devices must have nothing else to do."""
        return min(self._run_once() for _ in range(_REPEATS))

    def _run_once(self) -> Probed:
        begin = time.perf_counter()
        ready = []
        for shard in self._run(self._argument).addressable_shards:
            shard.data.block_until_ready()
            ready.append((time.perf_counter() - begin, shard.device.id))
        return slowest(ready)


def slowest(ready: Sequence[tuple[float, int]]) -> Probed:
    """Returns the result of a probe: the wait for the slowest device is long, those after it are over at once.

    Args:
        ready: seconds until the end of each wait, in the order of the waits, and the device.
    """
    seconds = ready[-1][0]
    return Probed(seconds, next(device for waited, device in ready if waited >= 0.9 * seconds))
