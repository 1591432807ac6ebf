"""A bounded queue in front of an output stream, whose reader may be slow, or may not read at all.

The thread that writes to the stream is the only one that ever waits for the reader. What does not fit into the queue is
dropped and counted.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from engine.cluster import timeouts

_MOST = 1 << 20  # bytes or characters in a queue: hours of progress
_OVERHEAD = 100  # bytes of memory of a chunk beyond its text, which may be a single character

_queues: "weakref.WeakSet[OutputQueue[Any]]" = weakref.WeakSet()


class OutputQueue[Chunk: (bytes, str)]:
    """Writes chunks in a thread, in their order.

    A caller waits until its chunk is written, so that the last lines before a crash are on the screen. If that takes
    longer than CALLER_WAITS_S, the reader is late. Callers do not wait for a late reader until it has read everything,
    except once for room in a full queue.

    Args:
        name: of the stream, such as "standard error".
        write: writes one chunk, in the thread; may block, raises nothing.
        encode: makes a chunk of a text.
        report: takes a sentence about lines that are missing, for the log of the run.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Chunk], None],
        encode: Callable[[str], Chunk],
        report: Callable[[str], None],
    ):
        self._name, self._write, self._encode, self._report = name, write, encode, report
        self._chunks: deque[tuple[Chunk, int]] = deque()  # each with its lines
        self._size = self._accepted = self._written = self._dropped = 0
        self._late = self._stuck = self._closed = self._running = False
        self._given_up = -1  # `_written` when `drain` gave up
        self._changed = threading.Condition()  # its lock may be taken again by a signal handler of the same thread
        _queues.add(self)

    def put(self, chunk: Chunk, lines: int) -> None:
        """Writes a chunk; drops and counts it if the queue is full."""
        if self._closed:
            if not self._late:
                self._write(chunk)
            return
        with self._changed:
            if self._chunks and self._size + _OVERHEAD + len(chunk) > _MOST and not self._get_room():
                self._dropped += lines
                return
            self._append(chunk, lines)
            mine = self._accepted
            if not self._running and not self._start():
                return
            self._changed.notify_all()
            if not self._late:
                self._late = not self._changed.wait_for(lambda: self._written >= mine, timeouts.CALLER_WAITS_S)

    def drain(self) -> bool:
        """Waits until everything is written, as long as the reader makes progress, but at most DRAIN_S.

        Returns:
            Whether everything is written.
        """
        end = time.monotonic() + timeouts.DRAIN_S
        with self._changed:
            while self._chunks and self._written != self._given_up and (left := end - time.monotonic()) > 0:
                before = self._written
                if not self._changed.wait_for(lambda: self._written > before, min(timeouts.UNREAD_S, left)):  # noqa: B023
                    self._given_up = before
            missing = self._dropped + sum(lines for _, lines in self._chunks)
            if missing:
                self._dropped = 0
                self._report(
                    f"{self._name} was not read in time: {missing:,} lines are missing or may appear later. This log "
                    "has those of the engine."
                )
            return not self._chunks

    def close(self) -> None:
        """Lets each caller write by itself from here on; if the reader is late, discards what they write."""
        self._closed, self._changed = True, threading.Condition()

    def _get_room(self) -> bool:
        """Waits for room, once: a reader that reads fast, but slower than the callers print, loses nothing."""
        if not self._stuck:
            self._stuck = not self._changed.wait_for(lambda: self._size <= _MOST // 2, timeouts.CALLER_WAITS_S)
        return not self._stuck

    def _append(self, chunk: Chunk, lines: int) -> None:
        self._chunks.append((chunk, lines))
        self._size += _OVERHEAD + len(chunk)
        self._accepted += 1

    def _start(self) -> bool:
        """Starts the thread; where the process cannot have one, the caller writes here and from here on."""
        try:
            threading.Thread(target=self._run, name=f"output to {self._name}", daemon=True).start()
            self._running = True
        except (RuntimeError, MemoryError):
            self.close()
            while self._chunks:
                self._write(self._chunks.popleft()[0])
        return self._running

    def _run(self) -> None:
        """Writes the chunks; ends when there was none for a while, so that no thread outlives its use."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._chunks, timeouts.IDLE_S):
                    self._running = False
                    return
                chunk, _ = self._chunks[0]
            self._write(chunk)
            with self._changed:
                self._chunks.popleft()
                self._size -= _OVERHEAD + len(chunk)
                self._written += 1
                if not self._chunks:
                    self._late = self._stuck = False
                    self._report_dropped()
                self._changed.notify_all()

    def _report_dropped(self) -> None:
        if self._dropped:
            text = f"{self._name} was not read in time: {self._dropped:,} lines are missing"
            self._dropped = 0
            self._report(f"{text}. This log has those of the engine.")
            self._append(self._encode(f"\n[{text} here. The log of a run has those of the engine.]\n"), 0)


def _close_queues() -> None:
    """In a forked process, which has no threads and is not the run: lets each caller write by itself."""
    for queue in _queues:
        queue.close()


os.register_at_fork(after_in_child=_close_queues)
