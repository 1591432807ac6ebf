"""The memories of a device: its own, and the host memory that it reads directly."""

import jax
from jax.sharding import Mesh

from engine.config.errors import ConfigError
from engine.types import Device

HOST_MEMORY = "pinned_host"  # the name in JAX


def device_memory(mesh: Mesh | None) -> str:
    """Returns the name of the memory in which the devices of a mesh compute; None means this process's devices."""
    return _local_device(mesh).default_memory().kind


def check_host_memory(mesh: Mesh | None, field: str, kinds: set[str] | None = None) -> None:
    """Checks that the devices of a mesh can read the memory of their host.

    Args:
        mesh: whose devices are to read it.
        field: of the config that asks for it.
        kinds: memories of a device; None asks the device.

    Raises:
        ConfigError: they have no such memory.
    """
    device = _local_device(mesh)
    kinds = {memory.kind for memory in device.addressable_memories()} if kinds is None else kinds
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"{field}: a {device.platform} device reads no memory of its host ({HOST_MEMORY}); it has "
            f"{', '.join(sorted(kinds)) or 'none with a name'}. Leave {field} at its default."
        )


def _local_device(mesh: Mesh | None) -> Device:
    """Returns a device of this process, since the memories of others are unknown."""
    return jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
