"""A cache of the latest blocks of files, for formats whose smallest read holds many examples, or of open files.

It is the only cache of the readers: its bound is a sum of sizes, which may count bytes or files.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future


class BlockCache[T]:
    """The latest blocks, up to a total size; a larger block is kept alone.

    Threads that need the same block at the same time read it once. A pickled cache arrives empty.
    """

    def __init__(self, limit: int, read: Callable[..., tuple[T, int]]):
        """Creates an empty cache.

        Args:
            limit: total size to keep, such as bytes.
            read: maps the arguments of `get` to the block and its size.
        """
        self._limit, self._read = limit, read
        self._clear()

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Hashable, Future[tuple[T, int]]] = OrderedDict()
        self._ready: dict[Hashable, T] = {}  # those that are read: a Future takes 2 us to return its result
        self._size = 0

    def __getstate__(self) -> tuple[int, Callable[..., tuple[T, int]]]:
        return self._limit, self._read

    def __setstate__(self, state: tuple[int, Callable[..., tuple[T, int]]]) -> None:
        self._limit, self._read = state
        self._clear()

    def get(self, *key: Hashable) -> T:
        """Returns a block; reads it if it is not kept. An error of the read is raised, and not kept."""
        with self._lock:
            if known := key in self._blocks:
                self._blocks.move_to_end(key)
                if key in self._ready:
                    return self._ready[key]
            else:
                self._blocks[key] = Future()
            block = self._blocks[key]
        if known:
            return block.result()[0]
        try:
            block.set_result(self._read(*key))
        except BaseException as error:
            with self._lock:
                del self._blocks[key]
            block.set_exception(error)
            raise
        with self._lock:
            self._ready[key], size = block.result()
            self._size += size
            for old, kept in list(self._blocks.items()):
                if self._size <= self._limit:
                    break
                if old != key and old in self._ready:
                    self._size -= kept.result()[1]
                    del self._blocks[old], self._ready[old]
        return block.result()[0]
