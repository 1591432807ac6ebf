"""Reads text files of others, replaces files atomically, and locks open files.

After a replacement a reader sees the old content or the new content, even after a crash of the machine. The kernel
releases a lock when its file is closed or its process ends. Network disks support locks from NFS version 4 on; Lustre
and GPFS where that is enabled.
"""

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

LARGEST = 256 << 20  # bytes: more than the largest file that a run writes as a whole, a manifest of 10,000 processes


def read_text(path: Path, largest: int = LARGEST, errors: str = "strict") -> str:
    """Returns the text of a small regular file, which a stranger may have written.

    Does not wait for a pipe, and does not read a device.

    Raises:
        OSError: the file is missing, cannot be read, is not a regular file, has more than `largest` bytes, or, with
            `errors="strict"`, is not UTF-8.
    """
    with open(path, encoding="utf-8", errors=errors, opener=_open_regular) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise OSError(errno.EFBIG, f"it has {size} bytes, allowed are {largest}", str(path))
        try:
            return file.read(largest)
        except UnicodeDecodeError as error:
            raise OSError(errno.EILSEQ, f"it is not UTF-8 text: {error}", str(path)) from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


@contextlib.contextmanager
def replacing(
    path: Path, temporary: Path, before_rename: Callable[[], None] = lambda: None, mode: int = 0o666
) -> Iterator[BinaryIO]:
    """Opens a temporary file for the new content of `path`. At the end, it is synced to the disk and renamed.

    If anything fails, the old file stays and the temporary file is removed. A process that is killed leaves it.

    Args:
        path: the file.
        temporary: another path in the same folder.
        before_rename: called once the content is on disk, which may take long.
        mode: access to a new file, which the umask of the process reduces.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


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
