"""Moves the large arrays of batches from worker processes to the main process in shared memory that is used again.

New shared memory is slow: a batch of 13 MB takes 26 ms to write, since the kernel adds it page by page, and 9 ms to
read. Memory that both processes have used before takes 1 ms. So in a block of `shared_arrays`, `empty` and `zeros`
allocate in the worker's own pool; `share` replaces these arrays in the element of the block, and a `Receiver` in the
main process opens them. When the last view of an array is deleted in both processes, the worker uses its memory again.

Grain sends each memory once, at its first use, and so cleans up after killed processes and unread elements.
"""

import atexit
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from grain.multiprocessing import SharedMemoryArray

LEAST_BYTES = 64 * 2**10  # Grain sends a smaller array in new shared memory
HEADER = 64  # bytes before an array, of which the first is one of the states; JAX uses aligned arrays without a copy
FREE, USED = 0, 1


@dataclass(eq=False)
class _Memory:
    """Shared memory of a worker, and the array for which the present block uses it."""

    data: "SharedMemoryArray"  # uint8 `[HEADER + bytes]`
    sent: bool = False
    array: np.ndarray | None = None
    latest: "weakref.ref[np.ndarray] | None" = None

    @property
    def free(self) -> bool:
        """Whether no process uses the latest array. A source or a stream of this one may keep it after its block."""
        return bool(self.data[0] == FREE) and (self.latest is None or self.latest() is None)

    def use(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self.data[0] = USED
        self.array = array = np.ndarray(shape, dtype, buffer=self.data, offset=HEADER)
        self.latest = weakref.ref(array)
        return array


class _Worker(threading.local):
    """State of this thread: the memory that its present block uses, None outside of a block; and its whole pool."""

    used: list[_Memory] | None = None

    def __init__(self) -> None:
        self.pool: dict[int, list[_Memory]] = {}  # by size


_worker = _Worker()


@dataclass(frozen=True)
class _Sent:
    """Stands for an array in shared memory, on its way to the main process."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Parcel(NamedTuple):
    """The element of a block, on its way to the main process."""

    element: Any
    new: "dict[str, SharedMemoryArray]"
    """Name -> memory, of the memory that is used for the first time."""


@contextmanager
def shared_arrays(enabled: bool) -> Iterator[None]:
    """Lets `empty` and `zeros` allocate large arrays in shared memory in this block, if `enabled`."""
    before, _worker.used = _worker.used, [] if enabled else None
    try:
        yield
    finally:
        rest, _worker.used = _worker.used, before
        for memory in rest or ():
            memory.array = None
            if memory.sent:
                memory.data[0] = FREE
            else:
                _worker.pool[len(memory.data)].remove(memory)
                memory.data.metadata.close_and_unlink_shm()


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """Returns a new array, as `numpy.empty`."""
    found = allocate(shape, np.dtype(dtype))
    return np.empty(shape, dtype) if found is None else found


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """Returns a new array of zeros, as `numpy.zeros`."""
    found = allocate(shape, np.dtype(dtype))
    if found is None:
        return np.zeros(shape, dtype)
    found.fill(0)
    return found


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """Returns a new array in shared memory; None for a small one and outside of a block."""
    bytes_ = math.prod(shape) * dtype.itemsize
    if _worker.used is None or dtype.hasobject or bytes_ < LEAST_BYTES:
        return None
    size = 1 << (HEADER + bytes_ - 1).bit_length()  # a power of two, for arrays of other shapes; unused pages are free
    if not _worker.pool:
        atexit.register(_worker.pool.clear)  # Grain's arrays cannot be deleted later, while the interpreter ends
    pool = _worker.pool.setdefault(size, [])
    memory = next((memory for memory in pool if memory.free), None)
    if memory is None:
        from grain.multiprocessing import SharedMemoryArray

        memory = _Memory(SharedMemoryArray((size,), np.uint8))
        pool.append(memory)
    _worker.used.append(memory)
    return memory.use(shape, dtype)


def share(element: Any) -> Any:
    """Returns the element of the present block as a `Parcel`, if it holds whole arrays of `empty` and `zeros`.

    A part of such an array, or another view, stays as it is, so that Grain copies it.
    """
    import jax

    if not (used := _worker.used):
        return element
    new: dict[str, SharedMemoryArray] = {}

    def replace(leaf: Any) -> Any:
        memory = next((memory for memory in used if memory.array is leaf), None)
        if memory is None:
            return leaf
        used.remove(memory)
        name = memory.data.metadata.name
        if not memory.sent:
            memory.sent, new[name] = True, memory.data
        sent, memory.array = _Sent(name, leaf.shape, leaf.dtype), None
        return sent

    return Parcel(jax.tree.map(replace, element), new)


class Receiver:
    """Opens the elements of worker processes in the main process."""

    def __init__(self) -> None:
        self._memory: dict[str, SharedMemoryArray] = {}

    def open(self, element: Any) -> Any:
        """Returns an element whose parcels are replaced by their content."""
        import jax

        def content(part: Any) -> Any:
            if not isinstance(part, Parcel):
                return part
            self._memory |= part.new
            return jax.tree.map(self._array, part.element)

        return jax.tree.map(content, element, is_leaf=lambda part: isinstance(part, Parcel))

    def _array(self, leaf: Any) -> Any:
        if not isinstance(leaf, _Sent):
            return leaf
        data = self._memory[leaf.name]
        array = np.ndarray(leaf.shape, leaf.dtype, buffer=data, offset=HEADER)
        weakref.finalize(array, data.__setitem__, 0, FREE).atexit = False  # each view of the array refers to it
        return array

    def close(self) -> None:
        """Frees the memory; that of arrays that are still in use is freed after them."""
        self._memory.clear()
