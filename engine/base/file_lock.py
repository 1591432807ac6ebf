"""Locks of open files between processes (flock).

The kernel releases a lock when its file is closed or its process ends.
Network disks support them from NFS version 4 on; Lustre and GPFS where that is enabled.
"""

import fcntl
import io
from typing import IO


def lock(file: IO | io.RawIOBase, *, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file; returns False if another process holds the lock and `wait` is False.

    Raises:
        OSError: the file system supports no locks.
    """
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_if_supported(file: IO | io.RawIOBase, *, shared: bool = False, wait: bool = True) -> bool:
    """Does what `lock` does; returns True if the file system supports no locks."""
    try:
        return lock(file, shared=shared, wait=wait)
    except OSError:
        return True
