"""The memories of a device: its own, and that of the host which it reads directly.

Owns: their names, and the refusal where a platform has no such memory. Does not own: what is kept there
(`training/state.py`, `layers/remat.py`).
"""

from typing import Any

import jax
from jax.sharding import Mesh

from engine.config.errors import ConfigError

HOST_MEMORY = "pinned_host"  # as JAX names it


def device_memory(mesh: Mesh | None) -> str:
    """Returns the name of the memory that the devices of a mesh compute in; None is this process's own devices."""
    return _a_device(mesh).default_memory().kind


def check_host_memory(mesh: Mesh | None, field: str, kinds: set[str] | None = None) -> None:
    """Refuses to keep something in the host's memory where no device reads it.

    Args:
        mesh: where it is to be read.
        field: of the config that asks for it.
        kinds: of memory that a device has; None asks the device.

    Raises:
        ConfigError: there is no such memory.
    """
    device = _a_device(mesh)
    kinds = {memory.kind for memory in device.addressable_memories()} if kinds is None else kinds
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"{field}: a {device.platform} device reads no memory of its host ({HOST_MEMORY}); it has "
            f"{', '.join(sorted(kinds)) or 'none with a name'}. Leave {field} at its default."
        )


def _a_device(mesh: Mesh | None) -> Any:
    """One of this process: only of those the memories are known."""
    return jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
