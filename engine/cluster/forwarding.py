"""Forwards the output of a process to the streams of its parent, so that the process never waits for a terminal.

The parent always reads, whatever its own reader does, and drops what nobody reads (`output.py`). Only where standard
output is the result of the command, the process waits for the reader of that result. A process whose parent writes to
a terminal gets a pseudo-terminal: its bars, tables and debuggers work as without the parent.
"""

import codecs
import contextlib
import os
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from typing import TextIO

from engine.cluster import output, timeouts

_MOST = 1 << 16  # bytes of a copied piece, the capacity of a pipe, and characters of a line


class Forwarder:
    """Copies the output of one process to the streams of this one, in threads.

    Create it before the process starts, give `stdout` and `stderr` to the process, then call `start`.

    Args:
        prefix: stands before each line; None copies everything unchanged.
    """

    def __init__(self, prefix: str | None = None):
        self._prefix = prefix
        self._writing = self._copied = 0  # threads that are in a write; pieces that were written
        self._threads: list[threading.Thread] = []
        if prefix is None and _is_same(1, 2):  # one channel keeps the order of all lines
            both, self.stdout = _channel(like=1)
            self.stderr = self.stdout
            self._sources = {both: sys.stdout if output.waits_for_reader() else sys.stderr}
        else:
            out, self.stdout = _channel(like=1 if prefix is None else None)
            err, self.stderr = _channel(like=2 if prefix is None else None)
            self._sources = {out: sys.stdout, err: sys.stderr}

    def start(self) -> None:
        """Starts to copy. The process has started and holds its ends of the channels, which are closed here."""
        for descriptor in {self.stdout, self.stderr}:
            os.close(descriptor)
        for source, target in self._sources.items():
            self._threads.append(threading.Thread(target=self._copy, args=(source, target), daemon=True))
            self._threads[-1].start()

    def become(self) -> None:
        """In a forked process: makes the channels its standard output and standard error."""
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)
        for descriptor in {self.stdout, self.stderr, *self._sources}:
            os.close(descriptor)

    def join(self, stopped: Callable[[], object]) -> bool:
        """Waits for the last output of the process, which has ended, but not for other processes that it started.

        Args:
            stopped: whether this process was asked to stop. Until then a result waits for its reader.

        Returns:
            Whether no write still waits for its reader.
        """
        for thread in self._threads:
            end, copied, progress_at = time.monotonic() + timeouts.LAST_OUTPUT_S, self._copied, time.monotonic()
            while thread.is_alive() and (self._writing or time.monotonic() < end):
                thread.join(timeouts.JOIN_POLL_S)
                if self._copied != copied:
                    copied, progress_at = self._copied, time.monotonic()
                elif self._writing and stopped() and time.monotonic() - progress_at > timeouts.UNREAD_S:
                    break
        return not self._writing

    def _copy(self, source: int, target: TextIO | None) -> None:
        pieces = _pieces(source, target) if self._prefix is None else _lines(source, self._prefix)
        stream = None if target is None else output.nonblocking(target)
        for piece in pieces:
            if stream is not None:  # this process has such a stream
                self._writing += 1
                with contextlib.suppress(OSError, ValueError):  # it is closed; the process must not wait for it
                    stream.write(piece)
                    stream.flush()
                self._writing, self._copied = self._writing - 1, self._copied + 1


def _is_same(first: int, second: int) -> bool:
    """Whether two descriptors lead to the same terminal, pipe, socket or file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(first), os.fstat(second))
    return False


def _channel(like: int | None) -> tuple[int, int]:
    """Returns the ends of a channel, to read and to write: a pseudo-terminal if `like` is a terminal, else a pipe."""
    with contextlib.suppress(OSError, termios.error):  # no pseudo-terminal is left, or the system has none
        if like is not None and os.isatty(like):
            read_end, write_end = os.openpty()
            tty.setraw(write_end)  # the terminal itself translates the ends of lines
            _copy_size(like, write_end)
            return read_end, write_end
    return os.pipe()


def _copy_size(terminal: int, to: int) -> None:
    with contextlib.suppress(OSError, termios.error):
        size = termios.tcgetwinsize(terminal)
        if size != termios.tcgetwinsize(to):
            termios.tcsetwinsize(to, size)


def _pieces(source: int, target: TextIO | None) -> Iterator[str]:
    """Yields everything that a process writes, as it arrives; its terminal keeps the size of the one here."""
    decoder = codecs.getincrementaldecoder(getattr(target, "encoding", None) or "utf-8")(errors="surrogateescape")
    descriptor = 1 if target is sys.stdout else 2
    is_terminal = os.isatty(source)
    while data := _read(source):
        if is_terminal:
            _copy_size(descriptor, source)
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)
    os.close(source)


def _read(source: int) -> bytes:
    try:
        return os.read(source, _MOST)
    except OSError:  # of a pseudo-terminal that no process has open any more
        return b""


def _lines(source: int, prefix: str) -> Iterator[str]:
    """Yields whole lines with the prefix; a very long line in pieces."""
    with open(source, encoding="utf-8", errors="replace") as text:
        while line := text.readline(_MOST):
            yield f"{prefix}{line.rstrip()}\n"
