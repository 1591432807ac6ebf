"""Standard output and standard error as a service: they never block a run, and never end it.

A reader may end (`| head`), a terminal may be closed, a disk may be full: `guard` replaces the two streams of Python by
streams that discard everything after the first error. A reader may also stop reading (Ctrl-S, a stuck log shipper):
each stream has a bounded queue (`output_queue.py`). Only the result of a verb, on standard output, waits for its
reader. The log of the run names what is missing on the screen (`run/log.py`).
"""

import atexit
import errno
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from engine.base.errors import ConvoyError
from engine.cluster import timeouts
from engine.cluster.output_queue import OutputQueue

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STREAMS = {"stdout": (1, "standard output"), "stderr": (2, "standard error")}
_PIECE_BYTES = 1 << 16  # of one write: the capacity of a pipe, so that a slow reader shows as progress
_OUTLET = "_convoy_outlet"  # attribute of a stream of Python: its `_TextOutlet`


class OutputError(ConvoyError):
    """The output of a verb, which is its only result, could not be written."""


@dataclass(frozen=True)
class SilencedStream:
    """A stream that went silent."""

    name: str  # "standard output" or "standard error"
    code: int  # errno of the failed write
    text: str  # a sentence


_silenced: list[SilencedStream] = []
_sentences: list[str] = []  # for `unreported`
_guarded: dict[str, "_GuardedFile"] = {}  # name of a stream -> its file, after `guard`


def guard() -> None:
    """Replaces `sys.stdout` and `sys.stderr`, and opens `/dev/null` for each closed standard stream.

    Otherwise the next file that the process opens would get the number of the closed stream, and a library that prints
    there would overwrite it.
    """
    closed = [fd for fd in (0, 1, 2) if _fill(fd)]
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115, open as long as the process
    for attribute, (fd, name) in _STREAMS.items():
        if fd in closed:
            _silence(name, errno.EBADF, f"{name} is closed: it was closed when this process started.")
        file = _GuardedFile(fd, name, waits=fd == 1)
        setattr(sys, attribute, _stream(file, getattr(sys, attribute)))
        _guarded[attribute] = file
    atexit.register(_finish)


def drop_unread_results() -> None:
    """Makes standard output drop what its reader does not read, as standard error does: the verb has no result there.

    Until this call standard output waits for its reader, as any program does.
    """
    if "stdout" in _guarded:
        with suppress(ValueError):
            sys.stdout.flush()
        _guarded["stdout"].waits = False


def waits_for_reader() -> bool:
    """Whether standard output waits for its reader."""
    return "stdout" not in _guarded or _guarded["stdout"].waits


def show(text: str) -> None:
    """Prints a line for the user on standard error, from any thread; it never waits for a reader, and never fails."""
    if sys.stderr is not None:
        stream = nonblocking(sys.stderr)
        with suppress(ValueError, OSError):  # a stream that the user's code has closed
            stream.write(text + "\n")  # one call, so that lines of several threads are not mixed
            stream.flush()


def nonblocking(stream: TextIO) -> TextIO:
    """Returns a stream that writes to this one and never waits long for its reader.

    A stream that is not an ordinary file of Python, such as that of a notebook, is returned unchanged.
    """
    raw = getattr(stream, "buffer", None)
    if type(stream) is not io.TextIOWrapper or isinstance(getattr(raw, "raw", raw), _GuardedFile):
        return stream
    if not hasattr(stream, _OUTLET):
        setattr(stream, _OUTLET, _TextOutlet(stream))
    return getattr(stream, _OUTLET)


def takes_bytes(stream: TextIO | None) -> bool:
    """Whether `write` can write bytes to a stream."""
    return stream is not None and hasattr(nonblocking(stream), "buffer")


def write(stream: TextIO | None, data: str | bytes) -> None:
    """Writes to a stream of Python without waiting long for its reader; None is a stream that discards everything."""
    if stream is not None:
        target: Any = nonblocking(stream)
        raw = getattr(getattr(target, "buffer", None), "raw", None)
        if isinstance(raw, _GuardedFile):
            target.flush()
            # Bypass the buffer: a thread that waits for the reader would hold its lock, and block the last flush.
            raw.write(data if isinstance(data, bytes) else data.encode(target.encoding, "backslashreplace"))
            return
        (target.buffer if isinstance(data, bytes) else target).write(data)
        target.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream leads to a terminal."""
    with suppress(ValueError, AttributeError):  # a closed stream, none
        return cast(TextIO, stream).isatty()
    return False


def drain() -> bool:
    """Waits until all lines for the user are written; gives up on a stream whose reader does not read.

    Returns:
        Whether all are written.
    """
    outlets = [getattr(stream, _OUTLET) for stream in (sys.stdout, sys.stderr) if hasattr(stream, _OUTLET)]
    drained = [owner.queue.drain() for owner in (*_guarded.values(), *outlets)]
    return all(drained)


def finish() -> bool:
    """Flushes the two streams before the process ends, and drains them like `drain`; returns whether all is written."""
    threads = [threading.Thread(target=_flush, args=(s,), daemon=True) for s in (sys.stdout, sys.stderr)]
    end = time.monotonic() + timeouts.UNREAD_S
    try:
        for thread in threads:  # since a stream may be locked by a thread that waits for its reader
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    except (RuntimeError, MemoryError):  # no further thread can be started
        _flush(sys.stdout)
        _flush(sys.stderr)
    while any(file.writing for file in _guarded.values()) and time.monotonic() < end:
        time.sleep(timeouts.JOIN_POLL_S)  # an unbuffered stream has no lock for which a flush would wait
    return drain() and not any(file.writing for file in _guarded.values())


def unreported() -> list[str]:
    """Returns a sentence for each stream that went silent, or dropped lines, since the last call."""
    found = _sentences.copy()
    del _sentences[: len(found)]
    return found


def check() -> None:
    """Flushes standard output, which is the result of a verb.

    Raises:
        OutputError: a part of it was not written. No error if its reader has ended or the stream was closed.
    """
    with suppress(ValueError):  # a stream that the user's code has closed
        sys.stdout.flush()
    for stream in _silenced:
        if stream.name == _STREAMS["stdout"][1] and stream.code not in (errno.EPIPE, errno.EBADF):
            raise OutputError(f"standard output: cannot be written ({os.strerror(stream.code)}). The output is lost.")


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with suppress(OSError, ValueError):  # a reader that is gone, a full disk, a closed stream
            stream.flush()


def _finish() -> None:
    """Drains the queues at the end of the interpreter, after which no thread runs any more."""
    drain()
    for file in _guarded.values():
        file.queue.close()


def _fill(fd: int) -> bool:
    """Opens `/dev/null` as this descriptor if it is closed; returns whether it was closed."""
    try:
        os.fstat(fd)
        return False
    except OSError:
        _open_null_as(fd)
        return True


def _open_null_as(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(null, fd)
        os.close(null)


def _silence(name: str, code: int, text: str) -> None:
    _silenced.append(SilencedStream(name, code, text))
    _sentences.append(text)


def _stream(file: "_GuardedFile", former: TextIO | None) -> io.TextIOWrapper:
    """Returns a stream of this file with the settings of the former one."""
    settings: dict[str, Any] = {"encoding": "utf-8", "line_buffering": file.fileno() == 2, "write_through": False}
    if isinstance(former, io.TextIOWrapper):
        with suppress(ValueError, OSError):
            former.flush()
        settings = {
            "encoding": former.encoding,
            "line_buffering": former.line_buffering,
            "write_through": former.write_through,
        }
    buffer = file if settings["write_through"] else io.BufferedWriter(file)
    # A character that the terminal lacks is shown as an escape sequence and is no error either.
    return io.TextIOWrapper(cast(BinaryIO, buffer), errors="backslashreplace", **settings)


def _write_fully(
    write_some: Callable[[memoryview | bytes], int | None], descriptor: int, rest: memoryview | bytes
) -> None:
    """Writes everything, also to a terminal that another process has made non-blocking. Raises OSError."""
    while rest:
        written = write_some(rest)
        if written is None:  # the terminal is full
            select.select([], [descriptor], [])
        rest = rest[written or 0 :]


class _GuardedFile(io.FileIO):
    """A file descriptor whose first failed write makes it `/dev/null`.

    Args:
        fd: the descriptor.
        name: of the stream.
        waits: whether a write waits for the reader.
    """

    def __init__(self, fd: int, name: str, waits: bool):
        super().__init__(fd, "w", closefd=False)
        self._stream_name, self.waits = name, waits
        self.writing = 0
        """Writes that wait for the reader."""
        self.queue = OutputQueue[bytes](name, self._write_all, str.encode, _sentences.append)

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data).cast("B")
        if self.waits:
            self.writing += 1
            self._write_all(view)
            self.writing -= 1
            return len(view)
        for begin in range(0, len(view), _PIECE_BYTES):
            piece = bytes(view[begin : begin + _PIECE_BYTES])
            self.queue.put(piece, piece.count(b"\n"))
        return len(view)

    def _write_all(self, data: memoryview | bytes) -> None:
        try:
            _write_fully(super().write, self.fileno(), data)
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error}); it stays silent from here on."
            _silence(self._stream_name, error.errno or 0, f"{self._stream_name} {problem}")
            with suppress(OSError):
                _open_null_as(self.fileno())


class _TextOutlet:
    """Writes to a stream of Python that `guard` has not replaced, through a queue; discards all after an error."""

    def __init__(self, stream: TextIO):
        self._stream, self._failed = stream, False
        name = _STREAMS["stdout" if stream is sys.stdout else "stderr"][1]
        self.queue = OutputQueue[str](name, self._write_all, str, _sentences.append)

    def write(self, text: str, /) -> int:
        self.queue.put(text, text.count("\n"))
        return len(text)

    def flush(self) -> None:
        """Does nothing: a caller has waited as long as it may."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def _write_all(self, text: str) -> None:
        """Writes, bypassing the buffer of the stream: Python's exit waits for the lock of the buffer."""
        try:
            if self._failed:
                return
            buffer: Any = self._stream.buffer
            raw = getattr(buffer, "raw", buffer)
            if type(raw) is io.FileIO:
                self._stream.flush()
                _write_fully(raw.write, raw.fileno(), text.encode(self._stream.encoding, "backslashreplace"))
            else:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            self._failed = True
