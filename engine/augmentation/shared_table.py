"""`SharedTable`: arrays by name that worker processes read from the memory of the process that made them.

Pickling it pickles the address of the memory. A copy in each worker process would take the memory several times.
"""

import errno
import mmap
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from engine.base.errors import DataError
from engine.data.shared_arrays import create

ALIGNMENT = 64  # bytes


class _Place(NamedTuple):
    """Where an array begins in the memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class SharedTable:
    """Read-only arrays by name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Copies the arrays into new memory. They hold numbers or text of a fixed length."""
        self._places: dict[str, _Place] = {}
        size = ALIGNMENT  # before them, a token by which another process knows this memory
        for name, array in arrays.items():
            self._places[name] = _Place(size, array.shape, array.dtype)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._fd, self._owner = create(size), os.getpid()
        self._token = secrets.token_bytes(16)
        memory = mmap.mmap(self._fd, 0)
        memory[: len(self._token)] = self._token
        for array, place in zip(arrays.values(), self._places.values(), strict=True):
            np.ndarray(place.shape, place.dtype, memory, place.offset)[...] = array
        self._arrays = self._views(memory)

    def _views(self, memory: mmap.mmap) -> dict[str, np.ndarray]:
        found = {
            name: np.ndarray(place.shape, place.dtype, memory, place.offset) for name, place in self._places.items()
        }
        for array in found.values():
            array.flags.writeable = False
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays by name."""
        return self._arrays

    def __reduce__(self) -> tuple[Any, ...]:
        if sys.platform != "linux" or self._fd is None:  # a process can open the memory of another one on Linux only
            return SharedTable, ({name: np.array(array) for name, array in self._arrays.items()},)
        return _opened, (self._owner, self._fd, self._token, self._places)

    @classmethod
    def opened(cls, owner: int, fd: int, token: bytes, places: dict[str, _Place]) -> Self:
        """Returns the table in the memory of another process.

        Raises:
            DataError: that process has ended, or has deleted the table.
        """
        found = object.__new__(cls)
        found._places, found._token = places, token
        try:
            found._fd = os.open(f"/proc/{owner}/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
            memory = mmap.mmap(found._fd, 0, prot=mmap.PROT_READ)
            if memory[: len(token)] != token:
                raise OSError(errno.EBADF, "it is no longer there")
        except (OSError, ValueError) as error:
            raise DataError(
                f"the memory of process {owner} cannot be read: {getattr(error, 'strerror', error)}. A source with a "
                "database of objects can be read from a pickle only on the same machine, while the process that built "
                "it runs."
            ) from error
        found._arrays = found._views(memory)
        found._owner = os.getpid()
        return found

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is not None:
            os.close(fd)


def _opened(owner: int, fd: int, token: bytes, places: dict[str, _Place]) -> SharedTable:
    return SharedTable.opened(owner, fd, token, places)
