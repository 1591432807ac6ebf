"""Storage that may not answer: what touches it runs in a thread, and is waited for only so long.

Owns: the bounded call, the probe of a folder, free space in words, and which threads are left hanging. Does not own:
what is written. A system call on storage that hangs can be ended by nobody, and its process ends only by `os._exit`
(`cluster/shutdown.py`), which the command line uses where `hanging` is true.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBE_S = 10.0  # the longest that a healthy folder may take to be found writable
_FREE_S = 2.0  # for a look at the free space, which is a nicety

_threads: list[threading.Thread] = []
_doubted = False


class StorageTimeout(OSError):
    """Storage did not answer in time."""


class Background:
    """A call in a thread of its own, which nothing has to wait for.

    Args:
        function: what is called.
        name: of the thread.
    """

    def __init__(self, function: Callable[[], Any], name: str):
        self._function, self._value, self._error = function, None, None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _threads[:] = [thread for thread in _threads if thread.is_alive()] + [self._thread]
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return self._done.is_set()

    def result(self, timeout_s: float) -> Any:
        """Returns what the function returned, or raises what it raised.

        Raises:
            StorageTimeout: it has done neither within `timeout_s` seconds. It goes on.
        """
        if not self._done.wait(max(0.0, timeout_s)):
            raise StorageTimeout(f"no answer within {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._value


def bounded(function: Callable[[], Any], timeout_s: float, name: str = "storage") -> Any:
    """Returns what a function returns, or raises what it raises; waits for `timeout_s` seconds at most.

    Raises:
        StorageTimeout: it takes longer. It goes on in its thread.
    """
    return Background(function, name).result(timeout_s)


def suspect() -> None:
    """Notes that storage has failed: threads of libraries may hang in it, too."""
    global _doubted
    _doubted = True


def hanging() -> bool:
    """Whether a thread may hang in storage, which keeps the process from ending as usual."""
    if any(thread.is_alive() for thread in _threads):
        return True
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return _doubted and any(not thread.daemon for thread in others)


def probe(folder: Path, timeout_s: float = PROBE_S) -> None:
    """Returns when a folder, made with its parents where it is missing, is found writable.

    Raises:
        OSError: it is not.
        StorageTimeout: nothing is known within `timeout_s` seconds.
    """

    def write() -> None:
        folder.resolve().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"can this folder be written?")
            file.flush()
            os.fsync(file.fileno())

    bounded(write, timeout_s, "probe")


def free_space(folder: Path) -> str:
    """Returns how much may still be written where a folder lies, in words; never waits for long."""
    try:
        return f"{size_text(bounded(lambda: shutil.disk_usage(folder).free, _FREE_S, 'free-space'))} are free there"
    except OSError as error:
        return f"free space there is not known ({error.strerror or error})"


def size_text(size: float) -> str:
    """Returns a number of bytes in words, as 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
