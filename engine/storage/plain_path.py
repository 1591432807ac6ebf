"""Paths for libraries that read some characters of a path in their own way.

Orbax takes `[`, `*` and `?` as wildcards, TensorStore takes a backslash as `/`, and etils takes `/gs:/` as a bucket.
Libraries in C++ accept only UTF-8. No option turns this off, so such a library gets another path of the same folder.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine.base.errors import RunError
from engine.storage.mounts import shown

_PLAIN = re.compile(r"[\w/.,+=@%~ -]+", re.ASCII)  # characters that every library takes as they are


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields an absolute path of a folder that contains only plain characters; it is valid while the block runs.

    That is the folder's own path or `/proc/self/fd/N`, which Linux resolves to the folder in this process only. A
    subfolder of the yielded path is named as usual.

    Raises:
        OSError: the folder does not exist or cannot be opened.
        RunError: the path contains other characters, and this system has no `/proc`.
    """
    folder = folder.absolute()
    if _PLAIN.fullmatch(os.fspath(folder)):
        yield folder
        return
    if not (hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")):
        raise RunError(
            f"{shown(folder)}: this system has no /proc/self/fd, so this path must not contain other characters than "
            "ASCII letters, digits, spaces and any of / . , + = @ % ~ _ -. Choose another directory with --workdir=DIR."
        )
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
