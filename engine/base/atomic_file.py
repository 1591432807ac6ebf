"""Atomic replacement of files: a reader sees the old content or the new content, even after a crash of the machine."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


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
