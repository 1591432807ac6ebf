"""Forwards the output of a process to the streams of its parent, so that the process never waits for a terminal.

The parent always reads, whatever its own reader does, and drops what nobody reads (`cluster/output.py`). Only where
standard output is the result of the command, the process waits for the reader of that result.
"""

import codecs
import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TextIO

from engine.cluster import output
from engine.launch import timeouts

_MOST = 1 << 16  # bytes of a copied piece, the capacity of a pipe, and characters of a line


def terminal_variables() -> Mapping[str, str]:
    """Returns environment variables for a process whose output is forwarded unchanged.

    They name the streams that lead to a terminal, and its size, so that bars and tables look as without the parent.
    """
    found = {fd: stream for fd, stream in ((1, sys.stdout), (2, sys.stderr)) if output.is_terminal(stream)}
    if not found:
        return {}
    variables = {output.TERMINALS: ",".join(map(str, found))}
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(next(iter(found.values())).fileno())
        variables |= {name: str(value) for name, value in (("COLUMNS", size.columns), ("LINES", size.lines)) if value}
    return {**variables, **{name: os.environ[name] for name in ("COLUMNS", "LINES") if name in os.environ}}


class Forwarder:
    """Copies the output of a process to the streams of this one, in threads that start here.

    Args:
        process: a process whose standard output and standard error are pipes.
        prefix: stands before each line; None copies everything unchanged.
    """

    def __init__(self, process: subprocess.Popen[bytes], prefix: str | None):
        self._writing = 0  # threads that are in a write
        self._threads: list[threading.Thread] = []
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if source is not None and target is not None:
                pieces = _pieces(source, target.encoding) if prefix is None else _lines(source, prefix)
                self._threads.append(threading.Thread(target=self._copy, args=(pieces, target), daemon=True))
                self._threads[-1].start()

    def join(self, stopped: Callable[[], object]) -> bool:
        """Waits for the last output of the process, which has ended, but not for other processes that it started.

        Args:
            stopped: whether this process was asked to stop. Until then a result waits for its reader.

        Returns:
            Whether no write still waits for its reader.
        """
        for thread in self._threads:
            end = time.monotonic() + timeouts.OUTPUT_S
            while thread.is_alive() and (self._writing or time.monotonic() < end) and not (self._writing and stopped()):
                thread.join(timeouts.SIGNAL_POLL_S)
        return not self._writing

    def _copy(self, pieces: Iterator[str], target: TextIO) -> None:
        stream = output.nonblocking(target)
        for piece in pieces:
            self._writing += 1
            with contextlib.suppress(OSError, ValueError):  # a closed stream; the process must not wait for it
                stream.write(piece)
                stream.flush()
            self._writing -= 1


def _pieces(source: IO[bytes], encoding: str) -> Iterator[str]:
    """Yields everything that a process writes, as it arrives."""
    decoder = codecs.getincrementaldecoder(encoding)(errors="surrogateescape")
    with source:
        while data := os.read(source.fileno(), _MOST):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)


def _lines(source: IO[bytes], prefix: str) -> Iterator[str]:
    """Yields whole lines with the prefix; a very long line in pieces."""
    with io.TextIOWrapper(source, encoding="utf-8", errors="replace") as text:
        while line := text.readline(_MOST):
            yield f"{prefix}{line.rstrip()}\n"
