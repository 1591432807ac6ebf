"""The one way to end a process that cannot end by returning: verdict, last acts with a bound, exit.

A thread may end the process while the main thread is stuck in a collective or on storage, so nothing here waits for
the main thread. The peers get the reason by a last act that `peer_failure.py` adds.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from engine.cluster import timeouts, verdict
from engine.cluster.exit_status import status_of
from engine.config.errors import ConvoyError

type LastAct = Callable[[BaseException], None]

_last_acts: list[LastAct] = []


def add_last_act(act: LastAct) -> None:
    """Has `end` call `act(error)` before the exit, the newest act first."""
    _last_acts.append(act)


def remove_last_act(act: LastAct) -> None:
    """Undoes `add_last_act`."""
    _last_acts.remove(act)


def end(error: BaseException) -> NoReturn:
    """Ends this process because of an error, from any thread: verdict, last acts, exit code."""

    def perform() -> None:
        for act in reversed(_last_acts):
            with suppress(Exception):  # an act that fails must not keep the others from theirs
                act(error)

    with suppress(OSError):  # a full disk or a closed stderr must not keep the process
        verdict.report(error)
    thread = threading.Thread(target=perform, daemon=True)  # storage that hangs must not keep the process
    thread.start()
    thread.join(timeouts.LAST_ACTS_S)
    exit_now(status_of(error))


def exit_now(code: int) -> NoReturn:
    """Exits at once, without Python's own end, which would wait for threads and peers; flushes what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a reader that is gone, a full disk, a closed stream
            stream.flush()
    os._exit(code)


def exit_soon(code: int) -> None:
    """Exits in some seconds unless Python's own end, which waits for all threads, comes before."""
    _timer(timeouts.THREADS_S, lambda: exit_now(code))


@contextmanager
def bounded(seconds: float, make: Callable[[], ConvoyError]) -> Iterator[None]:
    """Ends the process with an error when a wait inside JAX, which nothing interrupts, takes longer."""
    timer = _timer(seconds, lambda: end(make()))
    try:
        yield
    finally:
        timer.cancel()


def _timer(seconds: float, function: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer
