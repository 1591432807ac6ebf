"""Cache of decoded arrays in one process, bounded in bytes. The least recently used arrays leave first."""

import collections
import threading
from collections.abc import Callable

import numpy as np


class DecodedCache:
    """Function that returns the array of a file, and keeps those of the last files. Threads may share it.

    Worker processes start with an empty cache each. The arrays are read-only, since several examples share them.

    Args:
        read: returns the array of a path.
        most_bytes: bound of the arrays that are kept; 0 keeps none.
    """

    def __init__(self, read: Callable[[str], np.ndarray], most_bytes: int):
        self._read, self._most_bytes = read, most_bytes
        self._lock, self._bytes = threading.Lock(), 0
        self._arrays: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

    @property
    def bytes(self) -> int:
        """Size of the arrays that are kept."""
        return self._bytes

    def __call__(self, path: str) -> np.ndarray:
        """Returns the array of a file, read-only. Raises what `read` raises."""
        with self._lock:
            if (found := self._arrays.get(path)) is not None:
                self._arrays.move_to_end(path)
                return found
        found = self._read(path)
        found.flags.writeable = False
        with self._lock:
            if found.nbytes <= self._most_bytes and path not in self._arrays:
                self._arrays[path] = found
                self._bytes += found.nbytes
            while self._bytes > self._most_bytes:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return found

    def __reduce__(self) -> tuple[type["DecodedCache"], tuple[Callable[[str], np.ndarray], int]]:
        return type(self), (self._read, self._most_bytes)
