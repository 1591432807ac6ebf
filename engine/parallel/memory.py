"""The memories of a device: device memory, and the host memory that it can read directly.

JAX does not list the memories of absent GPUs, for which a program is compiled ahead of time.
"""

import math
import os
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding

from engine.base.errors import ConfigError
from engine.base.types import Device
from engine.config import hardware

HOST_MEMORY = "pinned_host"  # JAX's name
UNLISTED: Mapping[str, Sequence[str]] = {"gpu": ("device", HOST_MEMORY)}
"""Platform -> the memories of a device that lists none, the default one first."""
GPU_SHARE = 0.75  # share of a GPU's memory that JAX allocates at its start unless MEMORY_FRACTION is set
MEMORY_FRACTION = "XLA_CLIENT_MEM_FRACTION"  # environment variable of JAX


def device_memory(mesh: Mesh | None) -> str:
    """Returns JAX's name of the default memory of a mesh's devices, or of this process's devices if `mesh` is None."""
    device = _local_device(mesh)
    if unlisted := _unlisted(device):
        return unlisted[0]
    return device.default_memory().kind


def in_host_memory(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding in host memory.

    JAX removes the kind of memory from a sharding over devices that list none, so that the result for those has the
    abstract mesh.
    """
    mesh = sharding.mesh
    if isinstance(mesh, Mesh) and _unlisted(_local_device(mesh)):
        return NamedSharding(mesh.abstract_mesh, sharding.spec, memory_kind=HOST_MEMORY)
    return sharding.with_memory_kind(HOST_MEMORY)


def check_host_memory(mesh: Mesh | None, field: str, kinds: set[str] | None = None) -> None:
    """Checks that the devices of a mesh can read host memory.

    Args:
        mesh: the mesh; None for this process's devices.
        field: config field that needs host memory, for the error text.
        kinds: names of the memories of a device; None queries the device.

    Raises:
        ConfigError: the devices cannot read host memory.
    """
    device = _local_device(mesh)
    if kinds is None:
        kinds = {memory.kind for memory in device.addressable_memories()} | set(_unlisted(device))
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"{field}: a {device.platform} device cannot read host memory ({HOST_MEMORY}); its memories are "
            f"{', '.join(sorted(kinds)) or 'unnamed'}. Leave {field} at its default."
        )


def _local_device(mesh: Mesh | None) -> Device:
    """Returns a device of this process; the memories of other processes' devices are unknown."""
    return jax.local_devices()[0] if mesh is None else mesh.local_devices[0]


def _unlisted(device: Device) -> Sequence[str]:
    """Returns the memories of a device that JAX does not list; empty if it lists them."""
    return () if device.addressable_memories() else UNLISTED.get(device.platform, ())


def device_memory_limit(mesh: Mesh) -> int | None:
    """Returns the bytes that JAX can allocate on a device of this process, the least over the devices of a mesh.

    None: the platform does not state it (a CPU device uses host memory). For a device of a topology, which is absent,
    it is the memory in the hardware table.
    """
    try:
        stats = [device.memory_stats() or {} for device in mesh.local_devices]
    except jax.errors.JaxRuntimeError:
        found = hardware.find(mesh.local_devices[0].device_kind)
        if found is None:
            return None
        return round(found.hbm_bytes * allocated_share(mesh.local_devices[0].platform))
    return min((limit for found in stats if (limit := found.get("bytes_limit"))), default=None)


def allocated_share(platform: str) -> float:
    """Returns the share of the memory of an absent device that JAX would allocate in this environment."""
    if platform != "gpu":
        return 1.0
    try:
        found = float(os.environ.get(MEMORY_FRACTION) or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or GPU_SHARE)
    except ValueError:
        return GPU_SHARE
    return found if 0 < found <= 1 else GPU_SHARE  # JAX rejects others where there is a GPU


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the size in bytes of an abstract array on one device."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program needs on each device: arguments, results, temporaries and code.

    Arguments that are donated hold results, and count once.
    """
    found = compiled.memory_analysis()
    assert found is not None
    return found.argument_size_in_bytes + working_bytes(compiled)


def working_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program needs on each device in addition to its arguments."""
    found = compiled.memory_analysis()
    assert found is not None
    return (
        found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
