"""Calls on storage that may hang: they run in threads, and every wait for one has a timeout.

Nothing can end a system call on storage that hangs. Its process ends only by `os._exit` (`cluster/shutdown.py`), which
the command line uses if `hanging` returns true.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from engine.base.formatting import size_text

PROBE_S = 10.0  # a healthy folder answers a probe sooner
_FREE_S = 2.0  # short: errors only mention the free space

_threads: list[threading.Thread] = []
_suspected = False


class StorageTimeout(OSError):
    """Storage did not answer in time."""


class Background[T]:
    """A call in a new thread.

    Args:
        function: called in the thread.
        name: name of the thread.
    """

    def __init__(self, function: Callable[[], T], name: str):
        self._function = function
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _threads[:] = [thread for thread in _threads if thread.is_alive()] + [self._thread]
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:  # `result` raises it
            self._error = error
        finally:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether the function has returned or raised."""
        return self._done.is_set()

    def result(self, timeout_s: float) -> T:
        """Returns what the function returned, or raises what it raised.

        Raises:
            StorageTimeout: the function has not finished within `timeout_s` seconds. Its thread continues.
        """
        if not self._done.wait(max(0.0, timeout_s)):
            raise StorageTimeout(f"no answer within {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._values[0]


def bounded[T](function: Callable[[], T], timeout_s: float, name: str = "storage") -> T:
    """Calls a function in a thread; returns its result or raises its error within `timeout_s` seconds.

    Raises:
        StorageTimeout: the function takes longer. Its thread continues.
    """
    return Background(function, name).result(timeout_s)


def suspect() -> None:
    """Marks storage as suspect after a failure: threads of libraries may hang in it too."""
    global _suspected
    _suspected = True


def hanging() -> bool:
    """Returns whether a thread may hang in storage, which prevents a normal exit of the process."""
    if any(thread.is_alive() for thread in _threads):
        return True
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return _suspected and any(not thread.daemon for thread in others)


def probe(folder: Path, timeout_s: float = PROBE_S) -> None:
    """Checks that a folder is writable; creates it and its parents if they are missing.

    Raises:
        OSError: it is not writable.
        StorageTimeout: the check takes longer than `timeout_s` seconds.
    """

    def write() -> None:
        # Path.resolve of Python 3.12 raises RuntimeError for links in a circle.
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"can this folder be written?")
            file.flush()
            os.fsync(file.fileno())

    bounded(write, timeout_s, "probe")


def free_space(folder: Path) -> str:
    """Returns a phrase with the free space of a folder's disk; waits at most two seconds."""
    try:
        return f"{size_text(bounded(lambda: shutil.disk_usage(folder).free, _FREE_S, 'free-space'))} are free there"
    except OSError as error:
        return f"the free space there is unknown ({error.strerror or error})"
