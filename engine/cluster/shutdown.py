"""Ends a process that cannot end by returning: records the verdict, runs exit callbacks with a timeout, exits.

Any thread may end the process while the main thread is stuck in a collective or on storage, so no function here waits
for the main thread. `peer_failure.py` adds an exit callback that reports the reason to the peers.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from engine.base.errors import ConvoyError
from engine.cluster import output, timeouts, verdict
from engine.cluster.exit_status import status_of

type ExitCallback = Callable[[BaseException], None]

_callbacks: list[ExitCallback] = []


def add_exit_callback(callback: ExitCallback) -> None:
    """Makes `end` call `callback(error)` before the exit; the callback added last runs first."""
    _callbacks.append(callback)


def remove_exit_callback(callback: ExitCallback) -> None:
    """Undoes `add_exit_callback`."""
    _callbacks.remove(callback)


def end(error: BaseException) -> NoReturn:
    """Ends this process because of an error, from any thread: verdict, exit callbacks, exit code."""

    def run_callbacks() -> None:
        for callback in reversed(_callbacks):
            with suppress(Exception):  # the other callbacks must run even if one fails
                callback(error)

    with suppress(OSError):  # a full disk or a closed stderr must not prevent the exit
        verdict.report(error)
    thread = threading.Thread(target=run_callbacks, daemon=True)  # hanging storage must not prevent the exit
    thread.start()
    thread.join(timeouts.EXIT_CALLBACKS_S)
    exit_now(status_of(error))


def exit_now(code: int) -> NoReturn:
    """Writes out stdout and stderr and exits at once, without Python's cleanup, which waits for threads and peers."""
    output.finish()
    os._exit(code)


def exit_soon(code: int) -> None:
    """Exits after some seconds if Python's normal exit, which waits for all threads, has not finished by then."""
    _timer(timeouts.THREADS_S, lambda: exit_now(code))


@contextmanager
def deadline(seconds: float, make_error: Callable[[], ConvoyError]) -> Iterator[None]:
    """Ends the process with an error if the block takes longer: for waits inside JAX that cannot be interrupted."""
    timer = _timer(seconds, lambda: end(make_error()))
    try:
        yield
    finally:
        timer.cancel()


def _timer(seconds: float, function: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer
