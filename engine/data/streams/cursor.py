"""Reads the items of shards by number, although a shard can only be read in order.

A cursor reads forward, and keeps the latest items: reader threads ask for batches in almost any order, and a window is
read as a whole. An earlier item makes it open the shard again. A *mark* is an item number with the position at which
the shard is opened to read that item.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.base.errors import ConvoyError, DataError
from engine.base.types import Json
from engine.data.file_states import FileChangedError
from engine.data.sampling.sampler import Mark
from engine.data.streams.stream import BaseStream

FEW = 16  # fetches between two openings of a shard: if there are fewer, threads read too far apart for `keep`
MOST_KEPT = 2**16  # items of a shard


class StreamReadError(ConvoyError):
    """A shard cannot be read on. Unlike a bad example, it cannot be skipped, so data.on_error does not apply."""

    @property
    def kind(self) -> str:
        """Always "DataError": the subclass is of no use to users."""
        return DataError.__name__


class Cursor:
    """Reads one shard.

    Args:
        stream: the stream.
        shard: number of the shard.
        count: items of the shard in an epoch; None if unknown: then the shard starts again where it ends.
        window: items that are shuffled together; there is a mark at the start of each window.
        keep: latest items to keep. It grows if threads read so far apart that the shard is opened again and again.
        mark: where to begin.
        name: name of the stream, for error texts.
    """

    def __init__(
        self, stream: BaseStream, shard: int, *, count: int | None, window: int, keep: int, mark: Mark | None, name: str
    ):
        self._stream, self._shard, self._count, self._window, self._keep = stream, shard, count, window, keep
        self._name = f"shard {shard} of {name}" if stream.shards > 1 else name
        self._lock = threading.Lock()
        self._reader: Iterator[tuple[Any, Json]] | None = None
        self._epoch_ended = False  # whether `_reader` has yielded the last item of an epoch
        self._next = 0  # number of the item that `_reader` yields next
        self._first = 0  # number of the first item since the shard was opened
        self._items: list[Any] = [None] * keep  # item n is at n % keep
        self._fetched = 0  # fetches since the shard was opened
        self._marks: deque[Mark] = deque([mark or (0, None)])  # in increasing order
        self.start: Mark = mark or (0, None)
        """A mark before all items that are still needed. `_marks` are later ones, of the latest items."""

    def fetch(self, number: int) -> Any:
        """Returns an item.

        Raises:
            StreamReadError: the shard cannot be read, is empty, or has fewer items than it says.
        """
        with self._lock:
            if self._reader is None or number < max(self._first, self._next - self._keep):
                self._keep_more(self._next - number)
                self._reopen(number)
            elif self._next < self.start[0] <= number:  # workers have read the items in between
                self._reopen(number)
            while self._next <= number:
                self._read()
            self._fetched += 1
            return self._items[number % self._keep]

    def mark(self, number: int) -> Mark:
        """Returns the latest known mark up to an item."""
        with self._lock:
            return self._mark(number)

    def _mark(self, number: int) -> Mark:
        kept = next((mark for mark in reversed(self._marks) if mark[0] <= number), None)
        begin: Mark = (0 if self._count is None else number - number % self._count), None  # where the epoch begins
        found = [mark for mark in (kept, self.start, begin) if mark is not None and mark[0] <= number]
        return max(found, key=lambda mark: mark[0])

    def _keep_more(self, back: int) -> None:
        """Keeps twice as many items as this distance if threads have gone back as far after a few fetches."""
        if self._fetched < FEW and self._keep < back <= MOST_KEPT // 2:
            self._keep = 2 * back

    def _reopen(self, number: int) -> None:
        mark = self._mark(number)
        self._next = self._first = mark[0]
        self._marks, self._epoch_ended, self._fetched = deque([mark]), False, 0
        self._items = [None] * self._keep
        self._reader = self._open(mark[1])

    def _read(self) -> None:
        """Reads the next item."""
        if self._epoch_ended:
            self._start_again()
        if (found := self._advance()) is None:
            if self._count is not None:
                raise StreamReadError(
                    f"{self._name} ended after {self._next % self._count} examples, but it says that it has "
                    f"{self._count}. Correct its counts, or the data."
                )
            self._start_again()
            if (found := self._advance()) is None:
                raise StreamReadError(f"{self._name} has no examples. Leave the shard out, or correct the data.")
        item, position = found
        self._items[self._next % self._keep] = item
        self._next += 1
        within = self._next if self._count is None else self._next % self._count
        self._epoch_ended = within == 0
        if within % self._window == 0:
            self._marks.append((self._next, None if self._epoch_ended else position))
        while len(self._marks) > 1 and self._marks[1][0] <= self._next - self._keep:
            self._marks.popleft()

    def _start_again(self) -> None:
        self._reader, self._epoch_ended = self._open(None), False

    def _open(self, position: Json) -> Iterator[tuple[Any, Json]]:
        try:
            return iter(self._stream.open(self._shard, position))
        except Exception as error:
            raise self._failed(error) from error

    def _advance(self) -> tuple[Any, Json] | None:
        assert self._reader is not None
        try:
            found = next(self._reader, None)
            if found is not None:
                item, position = found
                return item, position
        except Exception as error:
            self._reader = None  # a generator that has failed looks as if it had ended
            raise self._failed(error) from error
        return None

    def _failed(self, error: Exception) -> ConvoyError:
        if isinstance(error, FileChangedError):
            return error
        text = str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}"
        return StreamReadError(
            f"{self._name} cannot be read at its example {self._next}: {text.rstrip('.')}. The examples after it need "
            "it, so the run ends here. Correct the data, or let `open` leave the example out."
        )


class StreamReader:
    """Reads the items of all shards of a stream, by shard and number. Thread-safe; a pickled copy opens nothing.

    Args:
        stream, counts, window, name: of each `Cursor`.
        keep: latest items of a shard to keep.
    """

    _OWN = ("_lock", "_cursors", "_is_read", "_returned")  # attributes that a copy has for itself

    def __init__(self, stream: BaseStream, *, counts: Sequence[int] | None, window: int, keep: int, name: str):
        self._stream, self._counts, self._window, self._keep, self._name = stream, counts, window, keep, name
        self._marks: dict[int, Mark] = {}  # where to begin
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cursors: dict[int, Cursor] = {}
        self._is_read = np.zeros(self._stream.shards, bool)  # whether the shard has a cursor
        self._returned = np.full(self._stream.shards, -1)  # item of the mark that `marks` has returned

    def seek(self, marks: Mapping[int, Mark]) -> None:
        """Sets for some shards the mark from which they are read if no later one is known."""
        self._marks |= marks
        for shard, mark in marks.items():
            if (cursor := self._cursors.get(shard)) is not None:
                cursor.start = mark

    def fetch(self, shard: int, number: int) -> Any:
        """Returns an item. Raises StreamReadError."""
        if (cursor := self._cursors.get(shard)) is None:
            cursor = self._add(shard)
        return cursor.fetch(number)

    def marks(self, numbers: np.ndarray) -> dict[int, Mark]:
        """Returns the latest mark up to the item `numbers[shard]` for the shards that were read here.

        Marks that the previous call has returned are left out.
        """
        changed: dict[int, Mark] = {}
        for shard in np.flatnonzero(self._is_read & (numbers != self._returned)).tolist():
            mark = self._cursors[shard].mark(int(numbers[shard]))
            if mark[0] != self._returned[shard]:
                self._returned[shard], changed[shard] = mark[0], mark
        return changed

    def _add(self, shard: int) -> Cursor:
        count = None if self._counts is None else self._counts[shard]
        with self._lock:
            if shard not in self._cursors:
                self._cursors[shard] = Cursor(
                    self._stream,
                    shard,
                    count=count,
                    window=self._window,
                    keep=self._keep,
                    mark=self._marks.get(shard),
                    name=self._name,
                )
                self._is_read[shard] = True
            return self._cursors[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()
