"""Finds how many batches are made ahead, in host memory and on the devices, by their memory (`data.prefetch=auto`)."""

from engine.base.host import free_share, host_memory

LEAST, MOST = 2, 64  # dispatches
HOST_SHARE = 0.05  # share of the free host memory; eight processes may run on a host
IN_FLIGHT = 2  # dispatches that may wait on the devices behind the one that runs
DEVICE_SHARE = 0.1  # share of the device memory for the batches of all dispatches on it


def dispatches_ahead(setting: int | str, dispatch_bytes: int) -> int:
    """Returns the number of dispatches whose batches are read ahead.

    Args:
        setting: config field `data.prefetch`.
        dispatch_bytes: bytes of the batches of a dispatch in this process.
    """
    if isinstance(setting, int):
        return setting
    if (memory := host_memory()) is None:
        return LEAST
    share = HOST_SHARE * free_share() * memory.bytes
    return max(LEAST, min(MOST, int(share / max(1, dispatch_bytes))))


def dispatches_in_flight(setting: int | str, dispatch_bytes: int, device_bytes: int | None) -> int:
    """Returns how many dispatches may wait on the devices behind the one that runs; each holds its batches there.

    Args:
        setting: config field `data.prefetch`.
        dispatch_bytes: bytes of the batches of a dispatch on each device.
        device_bytes: memory of a device; None if it uses that of the host.
    """
    if isinstance(setting, int) or device_bytes is None:
        return IN_FLIGHT
    return max(1, min(IN_FLIGHT, int(DEVICE_SHARE * device_bytes / max(1, dispatch_bytes)) - 1))


def least_ahead(setting: int | str) -> int:
    """Returns the number of dispatches that are read ahead in any case."""
    return setting if isinstance(setting, int) else LEAST
