"""Reads small text files that another program, or a stranger, may have written."""

import errno
import os
import stat
from pathlib import Path

LARGEST = 256 << 20  # bytes: more than the largest file that a run writes as a whole, a manifest of 10,000 processes


def read_text(path: Path, largest: int = LARGEST, errors: str = "strict") -> str:
    """Returns the text of a regular file. Does not wait for a pipe, and does not read a device.

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
