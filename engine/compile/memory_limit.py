"""The memory of each device that the programs of a run may use."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from engine.base.formatting import size_text
from engine.base.host import host_memory
from engine.cluster import group, timeouts
from engine.cluster.host_address import machine_id, network_id
from engine.parallel.memory import device_memory_limit

DEVICE_SHARE = 0.9  # share of what JAX can allocate; the rest is for fragments and for small programs
HOST_SHARE = 0.5  # share of the host's memory, which also holds the data and the libraries


@dataclasses.dataclass(frozen=True)
class Limit:
    """The memory that a program may use on each device."""

    bytes: float
    text: str


def memory_limit(memory_gib: float | None, mesh: Mesh) -> Limit | None:
    """Returns the memory that a program may use on each device of a mesh; None if it is not known.

    It is `memory_gib`; or DEVICE_SHARE of the memory that JAX can allocate, which is that of the hardware table for
    devices that are absent; or on CPUs, HOST_SHARE of the memory of the host, divided by the devices of all processes
    that share it. On CPUs, all processes must call it.

    Args:
        memory_gib: config field `train.memory_gib`.
        mesh: the devices.
    """
    if memory_gib is not None:
        limit = memory_gib * 2**30
        return Limit(limit, f"{size_text(limit)} on each device (train.memory_gib)")
    found = device_memory_limit(mesh)
    if found is not None:
        text = f"{size_text(DEVICE_SHARE * found)} on each device, {DEVICE_SHARE:.0%} of its {size_text(found)}"
        return Limit(DEVICE_SHARE * found, text)
    if mesh.devices.flat[0].platform != "cpu":
        return None
    host = host_memory()
    # Containers on one machine share its memory, but each has a limit of its own.
    place = network_id() if host is not None and host.container else machine_id()
    here = (place, len(mesh.local_devices))
    devices = group.decide(here, devices_by_place, "the devices of each host", timeouts.AGREE_S).get(place, here[1])
    if host is None:
        return None
    each = HOST_SHARE * host.bytes / devices
    return Limit(each, f"{size_text(each)} on each of {devices} CPU devices, {HOST_SHARE:.0%} of {host}")


def devices_by_place(values: Mapping[int, Sequence], missing: Sequence[int]) -> dict[str, int]:
    """Returns the number of devices whose processes share memory, by the place of the processes."""
    count: Counter[str] = Counter()
    for place, devices in values.values():
        count[place] += devices
    return dict(count)
