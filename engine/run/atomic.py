"""Atomic replacement of small text files.

A reader sees the old text or the new text, never a part of either, even if the writer is killed.
"""

import errno
from collections.abc import Callable
from pathlib import Path

from engine.base.errors import RunError
from engine.base.files import replacing
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import shown

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}


def write_text(path: Path, text: str, before_rename: Callable[[], None] = lambda: None) -> None:
    """Replaces the file `path`: writes a temporary file in the same folder, syncs it, and renames it.

    Several threads may write the same path; the last rename wins. A writer that is killed leaves the old file and at
    worst a `.tmp` file, which the next one removes.

    Args:
        path: the file.
        text: its new content.
        before_rename: called once the text is on disk, which may take long. If it raises, the old file stays.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with replacing(path, before_rename=before_rename) as file:
            file.write(text.encode(errors="backslashreplace"))  # paths may not be UTF-8
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """Returns the error for a file or folder of the run that cannot be written.

    Its exit code asks for a restart if the storage has failed, not if the user's path or permissions are wrong. It
    rules out a restart if the folder was removed: the run would begin at step 0.
    """
    advice = "Free space there, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
    run_error = RunError(
        f"{shown(path)}: cannot be written ({error.strerror or error}). {advice} another directory with --workdir=DIR."
    )
    if error.errno in _STORAGE_ERRORS:
        run_error.exit_code = ExitStatus.RETRY
    elif error.errno == errno.ENOENT:
        run_error.exit_code = ExitStatus.STOP
    return run_error
