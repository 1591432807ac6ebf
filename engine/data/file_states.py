"""Notices that files of a dataset change while a run reads them.

A file has changed if its size, its modification time or its inode differs from those at the start. A reader compares
them whenever it opens a file (`FileStates.check`), and a thread of each process does so all the time (`FileWatch`), so
that no step waits for it.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from engine.base.errors import ConvoyError, DataError
from engine.cluster.shutdown import RunThread
from engine.data.source import BaseSource, inner_sources
from engine.storage.mounts import shown

PERIOD_S = 10.0  # between two comparisons of the thread
PER_PERIOD = 1000  # files that all processes of a run compare in a period, so that they do not load a file server
FEWEST = 10  # files that a process compares in a period
MOST_AT_START = 10_000  # files of a source whose state is read at the start; that of the others at their first open
FEW = 256  # files whose state is read first; if they take long, threads read that of the others
SLOW_S = 1e-4  # for a file: a local disk takes 3e-6, and with threads five times as long
THREADS = 16
EXIT_S = 5.0  # for the last comparison
MOUNTS = Path("/proc/self/mounts")

type State = tuple[int, int, int] | None
"""Size, modification time in nanoseconds, and inode; None for a file that does not exist."""


class FileChangedError(ConvoyError):
    """A file has changed under a run. Unlike a bad example, it cannot be skipped, so data.on_error does not apply."""

    @property
    def kind(self) -> str:
        """Always "DataError": the subclass is of no use to users."""
        return DataError.__name__


class FileStates:
    """The files of a source, with their states when the source was made. It is pickled with the source.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[str]):
        self.tolerant = False
        """Whether a change is only reported (`data.on_change=warn`)."""
        self.count = len(paths)
        """Number of the files."""
        begin, first = time.monotonic(), paths[:MOST_AT_START]
        self._states = {path: _state(path) for path in first[:FEW]}
        more = first[FEW:]
        if more and time.monotonic() - begin > FEW * SLOW_S:
            with ThreadPoolExecutor(THREADS) as threads:
                self._states |= zip(more, threads.map(_state, more), strict=True)
        else:
            self._states |= {path: _state(path) for path in more}

    @property
    def paths(self) -> list[str]:
        """The files whose state is known."""
        return list(self._states)

    @property
    def sizes(self) -> dict[str, int]:
        """The size in bytes of each file whose state is known; -1 for one that does not exist."""
        return {path: -1 if state is None else state[0] for path, state in list(self._states.items())}

    def check(self, path: str) -> None:
        """Compares a file that is being opened. Raises FileChangedError, unless changes are tolerated."""
        if not self.tolerant and (change := self.change(path)):
            raise _error([change])

    def change(self, path: str) -> str:
        """Returns how a file has changed; "" if it has not. The first call for a file reads its state."""
        now = _state(path)
        before = self._states.setdefault(path, now)
        if now == before:
            return ""
        if now is None:
            return f"{shown(path)} was removed"
        if before is None:
            return f"{shown(path)} has appeared again"
        if now[:2] == before[:2]:
            if _has_unstable_inodes(path):
                return ""
            return f"{shown(path)} was replaced by another file of the same size and modification time"
        sizes = f"{before[0]:,}" if now[0] == before[0] else f"{before[0]:,} -> {now[0]:,}"
        return f"{shown(path)} was changed at {_time(now[1] / 1e9)} ({sizes} bytes)"

    def accept(self, path: str) -> None:
        """Takes the present state of a file as that of the start, so that only the next change is reported."""
        self._states[path] = _state(path)


class FileWatch:
    """Compares the files of sources in a thread while a run trains; a context manager.

    All files are compared once more at the end of the block, unless it ends by an error of something else than data. An
    error of the data has the change of a file as its reason, if there was one.

    Args:
        sources: the sources of a run.
        say: called with warnings about files whose changes are tolerated.
        process, processes: number of this process, and of all of them. Each begins with other files.
    """

    def __init__(self, sources: Iterable[BaseSource], say: Callable[[str], None], process: int = 0, processes: int = 1):
        self._files = [(states, path) for states in states_of(sources) for path in states.paths]
        self._next = len(self._files) * process // processes
        self._count = min(len(self._files), max(FEWEST, PER_PERIOD // processes))
        self._say = say
        self._changes: deque[tuple[str, bool]] = deque()  # text, and whether it is tolerated
        self._stop, self._compared = threading.Event(), threading.Event()
        self._thread = RunThread(self._run, "file watch")

    def __enter__(self) -> "FileWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = isinstance(error, ConvoyError) and error.kind == DataError.__name__
        last = error is None or (failed and not isinstance(error, FileChangedError))
        if last:
            self._count = len(self._files)
        self._stop.set()
        if not last:
            return
        self._compared.wait(EXIT_S)  # a file server may not answer
        try:
            self.check()
        except FileChangedError as change:
            if error is None:
                raise
            raise FileChangedError(f"{change} The first error was: {error}") from error

    def check(self) -> None:
        """Reports the changes that the thread has found. Raises FileChangedError, unless they are tolerated."""
        if not self._changes:
            return
        found = [self._changes.popleft() for _ in range(len(self._changes))]
        if fatal := [text for text, tolerated in found if not tolerated]:
            raise _error(fatal)
        self._say(f"warning: {_sentence([text for text, _ in found])} The run trains on (data.on_change=warn).")

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._compare()
        self._compare()
        self._compared.set()

    def _compare(self) -> None:
        for _ in range(self._count):
            states, path = self._files[self._next % len(self._files)]
            self._next += 1
            if change := states.change(path):
                states.accept(path)
                self._changes.append((change, states.tolerant))


def states_of(sources: Iterable[BaseSource]) -> list[FileStates]:
    """Returns the states of the files that sources read, also those within them, each once."""
    found: dict[int, FileStates] = {}
    left = list(sources)
    while left:
        source = left.pop()
        if isinstance(source.file_states, FileStates):
            found[id(source.file_states)] = source.file_states
        left += inner_sources(source)
    return list(found.values())


def _error(changes: list[str]) -> FileChangedError:
    return FileChangedError(
        f"{_sentence(changes)} Examples that were read since may be of either state. Restore the file, delete the "
        "checkpoints that are newer than the change, and start again; or set data.on_change=warn."
    )


def _sentence(changes: list[str]) -> str:
    more = f", and {len(changes) - 1:,} more files have changed" if len(changes) > 1 else ""
    return f"{changes[0]} while the run reads it, noticed at {_time(time.time())}{more}."


def _state(path: str) -> State:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _has_unstable_inodes(path: str) -> bool:
    """Returns whether a file lies on a FUSE mount, such as a bucket, which may number a file anew at each look-up."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:  # not Linux
        return True
    full, kinds = os.path.realpath(path), {}
    for line in lines:
        _, folder, kind, *_ = line.split(" ")
        kinds[folder.replace("\\040", " ")] = kind
    folder = max((folder for folder in kinds if os.path.commonpath([folder, full]) == folder), key=len, default="")
    return kinds.get(folder, "").startswith("fuse")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
