"""The memories of a device: device memory, and the host memory that it can read directly."""

import jax
from jax.sharding import Mesh

from engine.config.errors import ConfigError
from engine.types import Device

HOST_MEMORY = "pinned_host"  # JAX's name


def device_memory(mesh: Mesh | None) -> str:
    """Returns JAX's name of the default memory of a mesh's devices, or of this process's devices if `mesh` is None."""
    return _local_device(mesh).default_memory().kind


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
    kinds = {memory.kind for memory in device.addressable_memories()} if kinds is None else kinds
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"{field}: a {device.platform} device cannot read host memory ({HOST_MEMORY}); its memories are "
            f"{', '.join(sorted(kinds)) or 'unnamed'}. Leave {field} at its default."
        )


def _local_device(mesh: Mesh | None) -> Device:
    """Returns a device of this process; the memories of other processes' devices are unknown."""
    return jax.local_devices()[0] if mesh is None else mesh.local_devices[0]


def device_memory_limit(mesh: Mesh) -> int | None:
    """Returns the bytes that JAX can allocate on a device of this process, the least over the devices of a mesh.

    None: the platform does not state it (a CPU device uses host memory).
    """
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return min((limit for found in stats if (limit := found.get("bytes_limit"))), default=None)
