"""Finds how many dispatches are read ahead (`data.prefetch=auto`), by the memory that is free when reading starts."""

import shutil

from engine.cluster.host_memory import free_share, host_memory

LEAST, MOST = 2, 64  # dispatches
HOST_SHARE = 0.05  # of the free memory of the host, on which eight processes may run
SHARED_SHARE = 0.25  # of the free shared memory, through which worker processes send batches
SHARED_FOLDER = "/dev/shm"


def dispatches_ahead(setting: int | str, dispatch_bytes: int, workers: int | str) -> int:
    """Returns the number of dispatches whose batches are read ahead.

    Args:
        setting: config field `data.prefetch`.
        dispatch_bytes: bytes of the batches of a dispatch in this process.
        workers: config field `data.workers`.
    """
    if isinstance(setting, int):
        return setting
    limits = []
    if (memory := host_memory()) is not None:
        limits.append(HOST_SHARE * free_share() * memory.bytes)
    if workers and (shared := _free_shared_bytes()) is not None:
        limits.append(SHARED_SHARE * shared)
    if not limits:
        return LEAST
    return max(LEAST, min(MOST, int(min(limits) / max(1, dispatch_bytes))))


def least_ahead(setting: int | str) -> int:
    """Returns the number of dispatches that are read ahead in any case."""
    return setting if isinstance(setting, int) else LEAST


def _free_shared_bytes() -> int | None:
    """Returns the free bytes of shared memory; None if the system has no such folder."""
    try:
        return shutil.disk_usage(SHARED_FOLDER).free
    except OSError:
        return None
