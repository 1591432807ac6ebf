"""Standard output and standard error as a service: a stream that cannot be written goes silent and raises no error.

A reader may end (`| head`), a terminal may be closed, a disk may be full. `guard` replaces the two streams of Python by
streams that discard everything after the first error. The file descriptor is then `/dev/null`, also for libraries that
write to it directly. The log of the run names such a stream (`run/log.py`).
"""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from engine.base.errors import ConvoyError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STREAMS = {"stdout": (1, "standard output"), "stderr": (2, "standard error")}


class OutputError(ConvoyError):
    """The output of a verb, which is its only result, could not be written."""


@dataclass(frozen=True)
class SilencedStream:
    """A stream that went silent."""

    name: str  # "standard output" or "standard error"
    code: int  # errno of the failed write
    text: str  # a sentence


_silenced: list[SilencedStream] = []
_reported = 0  # number of streams that `unreported` has returned


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
            _silenced.append(
                SilencedStream(name, errno.EBADF, f"{name} is closed: it was closed when this process started.")
            )
        setattr(sys, attribute, _stream(fd, name, getattr(sys, attribute)))


def unreported() -> list[str]:
    """Returns a sentence for each stream that went silent since the last call."""
    global _reported
    new = [stream.text for stream in _silenced[_reported:]]
    _reported += len(new)
    return new


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


def _stream(fd: int, name: str, former: TextIO | None) -> io.TextIOWrapper:
    """Returns a guarded stream with the settings of the former one."""
    settings: dict[str, Any] = {"encoding": "utf-8", "line_buffering": fd == 2, "write_through": False}
    if isinstance(former, io.TextIOWrapper):
        with suppress(ValueError, OSError):
            former.flush()
        settings = {
            "encoding": former.encoding,
            "line_buffering": former.line_buffering,
            "write_through": former.write_through,
        }
    file = _GuardedFile(fd, name)
    buffer = file if settings["write_through"] else io.BufferedWriter(file)
    # A character that the terminal lacks is shown as an escape sequence and is no error either.
    return io.TextIOWrapper(cast(BinaryIO, buffer), errors="backslashreplace", **settings)


class _GuardedFile(io.FileIO):
    """A file descriptor whose first failed write makes it `/dev/null`."""

    def __init__(self, fd: int, name: str):
        super().__init__(fd, "w", closefd=False)
        self._stream_name = name

    def write(self, data: "ReadableBuffer", /) -> int:
        rest = view = memoryview(data).cast("B")
        while rest:
            try:
                written = super().write(rest)
                if written is None:  # another process has made the terminal non-blocking, and it is full
                    select.select([], [self.fileno()], [])
            except OSError as error:
                self._silence(error)
                break
            rest = rest[written or 0 :]
        return len(view)

    def _silence(self, error: OSError) -> None:
        text = f"{self._stream_name} cannot be written ({error.strerror or error}); it stays silent from here on."
        _silenced.append(SilencedStream(self._stream_name, error.errno or 0, text))
        with suppress(OSError):
            _open_null_as(self.fileno())
