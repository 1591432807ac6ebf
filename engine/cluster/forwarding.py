"""Forwards the output of a process to the streams of its parent, so that the process never waits for a terminal.

The parent always reads, whatever its own reader does, and drops what nobody reads (`output.py`). Only where standard
output is the result of the command, the process waits for the reader of that result. A process whose parent writes to
a terminal gets a pseudo-terminal: its bars, tables and debuggers work as without the parent.
"""

import codecs
import contextlib
import io
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from engine.cluster import output, timeouts
from engine.cluster.shutdown import RunThread

type Write = Callable[[TextIO | None, str | bytes], None]

_MOST = 1 << 16  # bytes of a copied piece, the capacity of a pipe, and characters of a line
_CAPACITY = 1 << 20  # bytes that the largest pipe holds


class Forwarder:
    """Copies the output of one process to the streams of this one, in threads.

    Create it before the process starts, give `stdout` and `stderr` to the process, then call `start`.

    Args:
        prefix: stands before each line; None copies every byte unchanged.
        write: called in these threads, with a stream of this process and whole lines or bytes for it (default:
            `output.write`).

    Raises:
        OSError: this process has too many open files.
    """

    def __init__(self, prefix: str | None = None, write: Write | None = None):
        self._prefix, self._write = prefix, write or output.write
        self._threads: list[threading.Thread] = []
        with contextlib.ExitStack() as opened:
            self._ended, self._running = _pipe(opened)  # the latter is closed when the process has ended
            if prefix is None and _is_same(1, 2):  # one channel keeps the order of all lines
                both, self.stdout = _channel(1, opened)
                self.stderr = self.stdout
                self._sources = {both: sys.stdout if output.waits_for_reader() else sys.stderr}
            else:
                out, self.stdout = _channel(1 if prefix is None else None, opened)
                err, self.stderr = _channel(2 if prefix is None else None, opened)
                self._sources = {out: sys.stdout, err: sys.stderr}
            opened.pop_all()

    def start(self) -> None:
        """Starts to copy. The process has started and holds its ends of the channels, which are closed here.

        Raises:
            RuntimeError: no further thread can be started.
        """
        for descriptor in {self.stdout, self.stderr}:
            os.close(descriptor)
        for source, target in self._sources.items():
            lost = "What the process prints is lost from here on."
            self._threads.append(RunThread(self._copy, "output", (source, target), otherwise=lost))
            self._threads[-1].start()

    def become(self) -> None:
        """In a forked process: makes the channels its standard output and standard error."""
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)
        self.close()

    def close(self) -> None:
        """Closes the channels of a forwarder that is not started."""
        for descriptor in {self.stdout, self.stderr, *self._sources, self._ended, self._running}:
            os.close(descriptor)

    def join(self, stopped: Callable[[], object]) -> bool:
        """Waits for the last output of the process, which has ended, but not for other processes that it started.

        Args:
            stopped: whether this process was asked to stop. Until then a result waits for its reader.

        Returns:
            Whether no result still waits for its reader.
        """
        os.close(self._running)
        unread_at, end = time.monotonic() + timeouts.READS_S, time.monotonic() + timeouts.DRAIN_S
        complete = ended = True
        for thread, target in zip(self._threads, self._sources.values(), strict=True):
            is_result = target is sys.stdout and output.waits_for_reader()
            while thread.is_alive():
                if is_result and time.monotonic() > unread_at and stopped():
                    complete = False
                    break
                if not is_result and time.monotonic() > end:
                    break
                thread.join(timeouts.JOIN_POLL_S)
            ended = ended and not thread.is_alive()
        if ended:  # no thread reads it any more
            os.close(self._ended)
        return complete

    def _copy(self, source: int, target: TextIO | None) -> None:
        chunks = self._read(source, 1 if target is sys.stdout else 2)
        if self._prefix is not None:
            chunks = _lines(chunks, self._prefix)
        elif not output.takes_bytes(target):
            chunks = codecs.iterdecode(chunks, "utf-8", "surrogateescape")
        with os.fdopen(source, "rb", buffering=0):  # closed also if this thread fails: the process must not wait
            for chunk in chunks:
                with contextlib.suppress(OSError, ValueError):  # a stream that is closed
                    self._write(target, chunk)

    def _read(self, source: int, descriptor: int) -> Iterator[bytes]:
        """Yields everything that a process writes, as it arrives; its terminal keeps the size of the one here.

        Once the process has ended, all that it has written is in the channel, so nothing that comes later is read.
        """
        is_terminal = os.isatty(source)
        poll, left = select.poll(), _CAPACITY
        poll.register(source, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        while left > 0:
            ready = {number for number, _ in poll.poll()}
            if source not in ready and source not in {number for number, _ in poll.poll(0)}:
                return
            try:
                data = os.read(source, _MOST)
            except OSError:  # of a pseudo-terminal that no process has open any more
                return
            if not data:
                return
            if is_terminal:
                _copy_size(descriptor, source)
            if self._ended in ready:  # a process that still has the channel open may print without an end
                left -= len(data)
            yield data


def _is_same(first: int, second: int) -> bool:
    """Whether two descriptors lead to the same terminal, pipe, socket or file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(first), os.fstat(second))
    return False


def _channel(like: int | None, opened: contextlib.ExitStack) -> tuple[int, int]:
    """Returns the ends of a channel, to read and to write: a pseudo-terminal if `like` is a terminal, else a pipe."""
    with contextlib.suppress(OSError, termios.error):  # no pseudo-terminal is left, or the system has none
        if like is not None and os.isatty(like):
            read_end, write_end = os.openpty()
            tty.setraw(write_end)  # the terminal itself translates the ends of lines
            _copy_size(like, write_end)
            opened.callback(os.close, read_end)
            opened.callback(os.close, write_end)
            return read_end, write_end
    return _pipe(opened)


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        opened.callback(os.close, end)
    return ends


def _copy_size(terminal: int, to: int) -> None:
    with contextlib.suppress(OSError, termios.error):
        size = termios.tcgetwinsize(terminal)
        if size != termios.tcgetwinsize(to):
            termios.tcsetwinsize(to, size)


def _lines(pieces: Iterable[bytes], prefix: str) -> Iterator[str]:
    """Yields whole lines with the prefix; a very long line in pieces."""
    utf_8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder = io.IncrementalNewlineDecoder(utf_8, translate=True)
    begun = ""
    for piece in pieces:
        *lines, begun = (begun + decoder.decode(piece)).split("\n")
        while len(begun) >= _MOST:
            lines.append(begun[:_MOST])
            begun = begun[_MOST:]
        if lines:
            yield "".join(f"{prefix}{line.rstrip()}\n" for line in lines)
    if begun := begun + decoder.decode(b"", final=True):
        yield f"{prefix}{begun.rstrip()}\n"
