"""Sends objects through a pipe, with their large arrays in shared memory that is used again.

New shared memory is slow: a batch of 13 MB takes 26 ms to write, since the kernel adds it page by page, and 9 ms to
read. Memory that both processes have used before takes 1 ms. So `empty` and `zeros` allocate in the memory of the
`Sender` whose block runs. When the last view of an array is deleted in both processes, the sender uses it again.

The memory has no name: its file descriptor is sent through the pipe, once. So nothing remains of killed processes, and
the size of `/dev/shm` does not matter.
"""

import copyreg
import errno
import io
import math
import mmap
import os
import pickle
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LEAST_BYTES = 64 * 2**10  # a smaller array is pickled; a memory takes a file descriptor in each process
HEADER = 64  # bytes before an array, of which the first is one of the states; JAX uses aligned arrays without a copy
FREE, USED = 0, 1


def create(size: int) -> int:
    """Returns the file descriptor of new shared memory."""
    if sys.platform == "linux":
        fd = os.memfd_create("convoy")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def receive_memory(pipe: Connection) -> mmap.mmap:
    """Returns the shared memory whose file descriptor comes next in a pipe. Raises EOFError if that has ended."""
    try:
        fd = reduction.recv_handle(pipe)
    except ConnectionError as error:
        raise EOFError from error
    except RuntimeError as error:  # the kernel drops a file descriptor that this process cannot open
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


class _Memory:
    """Shared memory of a sender, and the array for which the present block uses it."""

    def __init__(self, number: int, size: int):
        self.number = number
        self.fd: int | None = create(size)  # None once it was sent
        self.data = mmap.mmap(self.fd, size)
        self.array: np.ndarray | None = None
        self.latest: weakref.ref[np.ndarray] | None = None

    @property
    def free(self) -> bool:
        """Whether no process uses the latest array. A source or a stream of this one may keep it after its block."""
        return self.data[0] == FREE and (self.latest is None or self.latest() is None)

    def use(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self.data[0] = USED
        self.array = array = np.ndarray(shape, dtype, buffer=self.data, offset=HEADER)
        self.latest = weakref.ref(array)
        return array


class _Thread(threading.local):
    """State of this thread: the sender whose block runs, and the receiver that unpickles a message."""

    sender: "Sender | None" = None
    receiver: "Receiver | None" = None


_thread = _Thread()


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
    return None if _thread.sender is None else _thread.sender.allocate(shape, dtype)


class _Message(NamedTuple):
    """A pickled object, and the memory of its large arrays, in its order."""

    data: bytes
    memory: list[_Memory]


class _Pickled(NamedTuple):
    """Stands for an object whose pickle is large."""

    data: np.ndarray


class Sender:
    """Sends objects through a pipe, and owns the memory of their large arrays."""

    def __init__(self, pipe: Connection):
        self._pipe, self._count = pipe, 0
        self._pool: dict[int, list[_Memory]] = {}  # by size
        self._used: list[_Memory] = []  # by arrays of the present block that were not sent

    @contextmanager
    def block(self) -> Iterator[None]:
        """Lets this thread allocate arrays in shared memory and send them. Frees those that it does not send."""
        _thread.sender = self
        try:
            yield
        finally:
            _thread.sender = None
            for memory in self._used:
                memory.array, memory.data[0] = None, FREE
            self._used.clear()

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """Returns a new array for the present block; None for a small one."""
        bytes_ = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or bytes_ < LEAST_BYTES:
            return None
        size = 1 << (HEADER + bytes_ - 1).bit_length()  # for arrays of other shapes; unused pages take no memory
        pool = self._pool.setdefault(size, [])
        memory = next((memory for memory in pool if memory.free), None)
        if memory is None:
            memory, self._count = _Memory(self._count, size), self._count + 1
            pool.append(memory)
        self._used.append(memory)
        return memory.use(shape, dtype)

    def message(self, content: Any) -> _Message:
        """Returns an object of the present block as a message."""
        message = self._pickle(content)
        if len(message.data) < LEAST_BYTES:
            return message
        data, memory = self._pickle(_Pickled(np.frombuffer(message.data, np.uint8)))  # a pipe holds few large messages
        return _Message(data, memory + message.memory)

    def send(self, message: _Message) -> None:
        """Sends a message, then the file descriptor of each memory that it is the first to use."""
        self._pipe.send_bytes(message.data)
        for memory in message.memory:
            self._used.remove(memory)
            memory.array = None
            if memory.fd is not None:
                reduction.send_handle(self._pipe, memory.fd, 0)
                os.close(memory.fd)
                memory.fd = None

    def _pickle(self, content: Any) -> _Message:
        file, used = io.BytesIO(), []

        def reduce(array: np.ndarray) -> str | tuple[Any, ...]:
            memory = self._memory_of(array)
            if memory is None:
                return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            used.append(memory)
            return _received, (memory.number, array.shape, array.dtype)

        pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = {**copyreg.dispatch_table, np.ndarray: reduce}
        pickler.dump(content)
        return _Message(file.getvalue(), used)

    def _memory_of(self, array: np.ndarray) -> _Memory | None:
        """Returns the memory that holds a whole array, to which it is copied if necessary; None for a small one."""
        memory = next((memory for memory in self._used if memory.array is array), None)
        if memory is None and (copied := self.allocate(array.shape, array.dtype)) is not None:
            np.copyto(copied, array)
            memory = self._used[-1]
        return memory


class Receiver:
    """Receives the objects of a `Sender` in another process."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._memory: dict[int, mmap.mmap] = {}

    def receive(self) -> Any:
        """Returns the next object.

        Raises:
            EOFError: the other process has ended.
        """
        try:
            data = self._pipe.recv_bytes()
        except OSError as error:  # it ended while it sent a message
            raise EOFError from error
        _thread.receiver = self
        try:
            content = pickle.loads(data)
            return pickle.loads(content.data) if isinstance(content, _Pickled) else content
        finally:
            _thread.receiver = None

    def array(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array in a memory of the sender, whose file descriptor follows the first message that uses it."""
        if number not in self._memory:
            self._memory[number] = receive_memory(self._pipe)
        data = self._memory[number]
        array = np.ndarray(shape, dtype, buffer=data, offset=HEADER)
        weakref.finalize(array, data.__setitem__, 0, FREE).atexit = False  # each view of the array refers to it
        return array


def _received(number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Opens an array of a message, while it is unpickled."""
    assert _thread.receiver is not None
    return _thread.receiver.array(number, shape, dtype)
