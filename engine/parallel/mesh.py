"""The mesh: devices by axis, from a config and the devices that are there.

Owns: the names of the axes, how `-1` and None are resolved, the batch's sharding, and how many CPU devices there
are. Does not own: which dimension of a parameter goes to which axis (`rules.py`).

Terms. *pipeline*: layers are split into stages. *data*: copies of the model, each with its own rows. *fsdp*: rows and
parameters are both split. *expert*: rows and the experts of a layer are both split. *context*: sequences are split.
*tensor*: dimensions of one layer are split.
"""

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from engine.config import hardware
from engine.config.errors import ConfigError, ShardingError
from engine.config.schema import MeshSpec

AXES = hardware.AXES
BATCH_AXES = ("data", "fsdp", "expert")


def resolve_axes(config: MeshSpec, devices: int) -> dict[str, int]:
    """Returns the size of every axis for a number of devices.

    Args:
        config: axes as integers; -1 takes what is left, and so does `data` when it is None and no other axis does.
        devices: how many there are.

    Raises:
        ShardingError: the axes do not multiply to the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if config.preset != "auto":
        preset = hardware.mesh_preset(config.preset)
        defaults = MeshSpec()
        sizes = {
            axis: preset.get(axis, size) if size == getattr(defaults, axis) else size for axis, size in sizes.items()
        }
    free = [axis for axis, size in sizes.items() if size == -1]
    if sizes["data"] is None:
        sizes["data"] = 1 if free else -1
        free = free or ["data"]
    if len(free) > 1:
        raise ShardingError(f"mesh: {' and '.join(free)} are both -1. One axis may take what is left.")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    text = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    if free and devices % fixed == 0:
        sizes[free[0]] = devices // fixed
    elif free or fixed != devices:
        raise ShardingError(
            f"mesh: {text} needs {'a multiple of ' if free else ''}{fixed} devices, found {devices}. "
            f"Meshes that work here: {_nearest(sizes, devices)}. Set mesh.data=-1 to take what is left."
        )
    return sizes


def _nearest(sizes: dict[str, int], devices: int) -> str:
    """Names up to three meshes of these devices, nearest to the sizes that were asked for."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    fits = [fit for fit in itertools.product(divisors, repeat=len(AXES)) if math.prod(fit) == devices]
    wanted = [max(size, 1) for size in sizes.values()]
    fits.sort(key=lambda fit: sum(abs(math.log(a / b)) for a, b in zip(fit, wanted, strict=True)))
    return "; ".join(" x ".join(f"{axis}={n}" for axis, n in zip(AXES, fit, strict=True)) for fit in fits[:3])


def make_mesh(config: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config over `devices` (all of them by default); axes are of type Auto."""
    devices = jax.devices() if devices is None else devices
    sizes = resolve_axes(config, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first dimension over `data`, `fsdp` and `expert`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, name: str = "train.global_batch_size") -> None:
    """Raises ShardingError when a batch does not divide over microbatches and devices."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = shards * accumulate
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        allowed = f"{below} or {above}" if below else f"{above}"
        micro = f" x {accumulate} microbatches" if accumulate > 1 else ""
        raise ShardingError(
            f"{name} = {batch_size} is not divisible by {shards} shards "
            f"({' x '.join(f'{axis}={mesh.shape[axis]}' for axis in BATCH_AXES)}){micro}. Use {allowed}, or another mesh."
        )


def cpu_device_count(setting: int | str | None, batch_size: int) -> int | None:
    """How many CPU devices to make: None leaves it to JAX and its JAX_NUM_CPU_DEVICES.

    "auto" is the largest number that the cores of this process allow and the batch divides by.
    """
    if setting is None or "JAX_NUM_CPU_DEVICES" in os.environ:
        return None
    if setting == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(n for n in range(1, cores + 1) if batch_size % n == 0)
    if not isinstance(setting, int) or setting < 1:
        raise ConfigError(f"mesh.cpu_devices = {setting!r}: allowed are a positive number, auto and None.")
    return setting
