"""Reads ranges of bytes from many files, and numbers their records.

Threads may share these objects. A pickled copy opens the files again.
"""

import bisect
import os
from collections.abc import Sequence

import numpy as np

from engine.base.errors import DataError
from engine.data.file_states import FileStates
from engine.readers.blocks import BlockCache
from engine.storage.mounts import shown

MOST_OPEN = 64  # files of one source that are open at a time; the usual limit of a process is 1024


class _OpenFile:
    """A file descriptor, which is closed when the last thread that uses it drops it."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class RecordFiles:
    """Files whose records have the numbers 0, 1, ... in the order of the files.

    Args:
        paths: the files.
        counts: number of records of each file.
        states: their states; each is compared when the file is opened.
        copies: files with the bytes to read, such as decompressed copies. Default: the files themselves.
    """

    def __init__(
        self, paths: Sequence[str], counts: Sequence[int], states: FileStates, copies: Sequence[str] | None = None
    ):
        self.paths, self._states = list(paths), states
        self._copies = self.paths if copies is None else list(copies)
        starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
        self._starts: list[int] = starts.tolist()
        self._open = _open_files(self.paths, self._copies, states)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self):
        return {"paths": self.paths, "_copies": self._copies, "_starts": self._starts, "_states": self._states}

    def __setstate__(self, state):
        self.__dict__.update(state, _open=_open_files(state["paths"], state["_copies"], state["_states"]))

    def locate(self, index: int) -> tuple[int, int]:
        """Returns (number of the file, number of the record in it). Raises IndexError outside 0 to len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._starts, index) - 1  # NumPy takes ten times as long for one number
        return file, int(index - self._starts[file])

    def name(self, index: int) -> str:
        """Returns the name of a record in error texts."""
        file, number = self.locate(index)
        return f"record {number} of {shown(self.paths[file])}"

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a file.

        Raises:
            DataError: the file is shorter, or cannot be read.
            FileChangedError: it has changed since its states were read.
        """
        path = self.paths[file]
        try:
            handle, parts, left = self._open.get(file), [], size
            while left and (part := os.pread(handle.number, left, offset + size - left)):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}). Check the file.") from error
        if left:
            raise DataError(
                f"{shown(path)} ends at byte {offset + size - left}, before byte {offset + size}. Copy the file again."
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _open_files(paths: Sequence[str], copies: Sequence[str], states: FileStates) -> BlockCache[_OpenFile]:
    """Returns a cache of open files by number. It does not refer to its owner, whose end closes the files."""

    def opened(file: int) -> tuple[_OpenFile, int]:
        found = _OpenFile(copies[file])
        states.check(paths[file])
        return found, 1

    return BlockCache(MOST_OPEN, opened)
