"""Small text files that are replaced in one piece.

Owns: `write_text`. A reader sees the old text or the new one, never a part, also when the writer is killed. Does not
own: files that grow (`jsonl.py`, `log.py`).
"""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import RunError
from engine.mounts import shown

_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}


def write_text(path: Path, text: str, may_write: Callable[[], None] = lambda: None) -> None:
    """Replaces the file `path` by `text`: written beside it, made durable, renamed.

    Threads may write the same path at once; the last rename wins. A writer that is killed leaves the old file, and at
    worst a `.tmp` file beside it.

    Args:
        path: the file.
        text: its new content.
        may_write: called just before the rename, which the disk may have held up for long; what it raises leaves the
            old file.

    Raises:
        RunError: the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            may_write()
        except BaseException:
            beside.unlink()
            raise
        os.replace(beside, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """Returns the sentence for a file or folder of the run that the system refused to write.

    Its exit code says "start me again" where the storage is in trouble, and not the user's path or rights wrong.
    """
    refused = RunError(
        f"{shown(path)}: cannot be written ({error.strerror or error}). "
        "Free space there, or choose another place with --workdir=DIR."
    )
    if error.errno in _TROUBLE:
        refused.exit_code = ExitStatus.RETRY
    return refused
