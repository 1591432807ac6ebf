"""Steps that another process reads at the moment, so that a writer lets them stay.

Owns: a lock on a step's manifest. Does not own: which steps a writer wants to remove (`retention.py`).

The lock is the kernel's (flock): it ends with its process, however that ends, and needs no right to write. It is seen
on one machine and on network disks that pass it on (NFS from version 4, Lustre, GPFS where it is turned on). Where a
disk has no locks, a step may be removed under a reader, whose restore then fails by name; nothing else does.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint.manifest import MANIFEST


@contextmanager
def read_lock(directory: Path) -> Iterator[None]:
    """Keeps a writer from removing a step while the block runs.

    Raises:
        FileNotFoundError: there is no such step, or it was removed at this moment.
    """
    with open(directory / MANIFEST, "rb") as file:
        _lock(file.fileno(), fcntl.LOCK_SH)
        # It may have been renamed between the opening and the lock.
        if not os.path.samestat(os.stat(directory / MANIFEST), os.fstat(file.fileno())):
            raise FileNotFoundError(f"{directory} was replaced")
        yield


@contextmanager
def delete_lock(directory: Path) -> Iterator[bool]:
    """Tells whether no process reads a step, and keeps new readers waiting while the block runs."""
    try:
        with open(directory / MANIFEST, "rb") as file:
            yield _lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        yield True  # nobody reads a step without a manifest


def _lock(descriptor: int, kind: int) -> bool:
    """Takes a lock; False where another process has it. A disk without locks counts as one where nobody reads."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
