"""The lock of a dataset that is being written: one call at a time writes it.

The file of the lock holds a random text of the call that holds it. Workers compare it before they give a shard its
name: a worker that outlives its call, cut off from it on another machine, must not replace a shard of a later call.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.base.errors import DataError
from engine.base.files import lock_if_supported
from engine.readers.array_record import cannot_write
from engine.readers.record_manifest import LOCK

LOCK_TRIES = 10  # a lock file that its holder removes at the same moment is opened again


@dataclass(frozen=True)
class OutputLock:
    """The lock that a call holds.

    Attributes:
        out: path of the dataset.
        token: content of the file of the lock.
    """

    out: Path
    token: str

    def check(self) -> None:
        """Raises DataError unless this process sees that the call still holds the lock."""
        try:
            found = lock_path(self.out).read_text()
        except FileNotFoundError:
            raise DataError(
                f"{self.out}: the worker on {socket.gethostname()} does not see the files that the command writes "
                "there. Name an output on a disk that all machines share under this path."
            ) from None
        except OSError as error:
            raise cannot_write(self.out, error.strerror or str(error)) from error
        if found != self.token:
            raise DataError(f"{self.out}: another process writes this dataset now, so this one stops.")


def lock_path(out: Path) -> Path:
    """Returns the path of the lock of a dataset."""
    return out.with_name(out.name + LOCK)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[OutputLock]:
    """Holds the lock of an output. Raises DataError if another process holds it, or if the folder cannot be written."""
    path, held = lock_path(out), OutputLock(out, secrets.token_hex(16))
    try:
        file = open_locked(path)
    except BlockingIOError:
        raise DataError(f"{out}: another process writes this dataset. Wait until it ends, or stop it.") from None
    except OSError as error:
        raise cannot_write(out, error.strerror or str(error)) from error
    with file:
        try:
            try:
                os.truncate(file.fileno(), 0)
                os.write(file.fileno(), held.token.encode())
            except OSError as error:
                raise cannot_write(out, error.strerror or str(error)) from error
            yield held
        finally:
            path.unlink(missing_ok=True)


def open_locked(path: Path) -> IO[str]:
    """Opens and locks a file, whose content stays. Raises BlockingIOError if another process holds the lock."""
    for _ in range(LOCK_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a")  # noqa: SIM115, closed by the caller
        except FileNotFoundError:  # `remove_empty` of another process has removed the folder
            continue
        if not lock_if_supported(file, wait=False):
            file.close()
            raise BlockingIOError
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # the process that held the lock has removed the file since it was opened here
    raise BlockingIOError
