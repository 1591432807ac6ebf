"""Tells whether a run directory is still at its path, and otherwise what happened to it."""

import contextlib
import os
from pathlib import Path

from engine.storage.mounts import shown


class Presence:
    """Keeps a run directory open, so that it can be found after it was moved.

    Args:
        folder: the run directory, which must exist.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def refresh(self) -> None:
        """Takes the directory that is at the path now as the run directory. Raises OSError."""
        if not os.path.samestat(os.stat(self._folder), os.fstat(self._descriptor)):
            before, self._descriptor = self._descriptor, self._open()
            os.close(before)

    def what_happened(self) -> str:
        """Returns a sentence about the directory whose lease is missing at its path, with what to do next.

        Raises:
            OSError: the storage does not answer as usual.
        """
        name = shown(self._folder)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(self._folder), os.fstat(self._descriptor)):
                return (
                    f"{name}: files of the run directory were removed while the run trained. Restore them from a "
                    "backup, or start again, which begins at the newest checkpoint that is left."
                )
        if os.fstat(self._descriptor).st_nlink == 0:
            return f"{name}: the run directory was removed while the run trained. The run cannot continue from it."
        if (place := self._place()) is None:
            return (
                f"{name}: the run directory is no longer there; it was moved, or its disk was unmounted, while the run "
                "trained. Bring it back, then start the same command again: it resumes from the newest checkpoint."
            )
        return (
            f"{name}: the run directory was moved to {place} while the run trained. Move it back and start the same "
            f"command again, or resume it there with --workdir={place}. It has the newest checkpoint."
        )

    def _place(self) -> str | None:
        """Returns the path of the directory now; None if this system does not know it."""
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{self._descriptor}")
            if os.path.samestat(os.stat(path), os.fstat(self._descriptor)):
                return path
        return None

    def close(self) -> None:
        """Closes the directory, so that its disk can be unmounted."""
        os.close(self._descriptor)
