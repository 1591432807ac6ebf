"""Ends a process that cannot end by returning: records the verdict, runs exit callbacks with a timeout, exits.

Any thread may end the process while the main thread is stuck in a collective or on storage, so no function here waits
for the main thread. `peer_failure.py` adds an exit callback that reports the reason to the peers. `RunThread` ends the
process if it fails: every thread that a run depends on is one.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from engine.base.errors import ConvoyError, EngineEnd
from engine.cluster import output, timeouts, tracebacks, verdict
from engine.cluster.exit_status import ExitStatus, status_of

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

    with suppress(OSError, MemoryError):  # a full disk, a closed stderr or a lack of memory must not prevent the exit
        verdict.report(error)
    try:
        thread = threading.Thread(target=run_callbacks, daemon=True)  # hanging storage must not prevent the exit
        thread.start()
        thread.join(timeouts.EXIT_CALLBACKS_S)
    except (RuntimeError, MemoryError):  # no further thread can be started: an alarm ends a callback that hangs
        signal.setitimer(signal.ITIMER_REAL, timeouts.EXIT_CALLBACKS_S)
        run_callbacks()
    exit_now(status_of(error))


class ThreadFailed(ConvoyError):
    """A thread without which the run cannot go on has failed."""

    exit_code = ExitStatus.RETRY


class RunThread(threading.Thread):
    """A thread that a run depends on: if it fails, it ends the process with its reason, whatever the main thread does.

    Args:
        target: called in the thread.
        name: name of the thread, for messages.
        args: arguments of `target`.
        daemon: whether Python exits without waiting for it.
        otherwise: what is missing without the thread, a sentence, if the run can go on: its failure is then a warning.
    """

    def __init__(
        self, target: Callable[..., object], name: str, args: tuple = (), *, daemon: bool = True, otherwise: str = ""
    ):
        super().__init__(target=target, name=name, args=args, daemon=daemon)
        self._otherwise = otherwise

    def run(self) -> None:
        """Calls the target; a failure ends the process, or is a warning."""
        with failures_end_process(self.name, self._otherwise):
            super().run()


@contextmanager
def failures_end_process(name: str, otherwise: str = "", passed: type[Exception] | tuple = ()) -> Iterator[None]:
    """Ends the process if the block, or the decorated function, raises, with the name of the thread and the reason.

    Args:
        name: name of the thread.
        otherwise: as for `RunThread`.
        passed: errors that the block may raise.
    """
    try:
        yield
    except passed:
        raise
    except BaseException as error:
        if otherwise:
            return logging.getLogger("convoy").warning("%s %s", _failure_text(name, error), otherwise)
        if isinstance(error, EngineEnd):
            end(error)
        advice = "The run cannot go on without it. The same command resumes from the newest checkpoint."
        failure = ThreadFailed(f"{_failure_text(name, error)} {advice}")
        failure.__cause__ = error
        end(failure)


def _failure_text(name: str, error: BaseException) -> str:
    """Returns the reason why a thread has failed, as a sentence with the file of its traceback."""
    try:
        tracebacks.keep(error)
        reason = tracebacks.report_text(error).splitlines()[-1]
    except MemoryError:
        reason = f"{type(error).__name__}."
    return f"the thread {name} has failed: {reason}"


def exit_now(code: int) -> NoReturn:
    """Writes out stdout and stderr and exits at once, without Python's cleanup, which waits for threads and peers."""
    output.finish()
    verdict.intend(code)
    os._exit(code)


def exit_soon(code: int) -> None:
    """Exits after some seconds if Python's normal exit, which waits for all threads, has not finished by then."""
    start_timer(timeouts.THREADS_S, lambda: exit_now(code))


@contextmanager
def deadline(seconds: float, make_error: Callable[[], ConvoyError]) -> Iterator[None]:
    """Ends the process with an error if the block takes longer: for waits inside JAX that cannot be interrupted."""
    timer = start_timer(seconds, lambda: end(make_error()))
    try:
        yield
    finally:
        timer.cancel()


def start_timer(seconds: float, function: Callable[[], None]) -> threading.Timer:
    """Starts a thread that calls a function after some seconds, unless it is cancelled; a failure ends the process."""

    def call() -> None:
        with failures_end_process("timer"):
            function()

    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer
