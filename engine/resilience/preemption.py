"""Stops a run on SIGTERM (preempted by a scheduler) or SIGINT (interrupted by a person).

The loop polls `Preemption.requested`. All processes stop at the same call of it (`StepAgreement`), even if only one
process received the signal. A second signal ends the process immediately, also while it compiles or waits for a device:
a thread reads signals from a socket, because Python's handlers run only when the main thread is back in Python. A save
in flight is then lost; earlier checkpoints stay intact.
"""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from engine.cluster import group, shutdown
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError
from engine.resilience import timeouts

_WAKE = signal.SIGURG  # interrupts a wait of the main thread; by default it has no effect on a process
_runs = itertools.count()  # runs of this process, one after the other: each has its own topic


class Preempted(ConvoyError):
    """A scheduler stopped the run; it can resume from its last checkpoint."""

    exit_code = ExitStatus.RETRY
    state = "preempted"
    everywhere = True
    from_outside = True


class Interrupted(ConvoyError):
    """A person stopped the run."""

    exit_code = ExitStatus.INTERRUPTED
    state = "interrupted"
    everywhere = True
    from_outside = True


class _WaitCancelled(BaseException):
    """Ends a wait of the main thread. Not an Exception, so that error handlers of the user do not catch it."""


class Preemption:
    """Context manager: while it is open, signals make `requested` return True instead of ending the process.

    Handlers are installed in the main thread only (Python allows no other). In another thread, such as a notebook's
    worker, only requests of other processes count. On exit the former handlers are restored.
    """

    def __init__(self):
        self._received: set[int] = set()
        self._waiting = False  # whether the main thread is in a wait that may be cancelled
        self._agreement = group.StepAgreement(f"stop/{next(_runs)}", self._wake)
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            watched = [signal.SIGTERM, signal.SIGINT]
            self._end_on_second_signal(watched)
            for number in (*watched, _WAKE):
                self._restore.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._on_signal)
        self._restore.enter_context(self._agreement)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore.close()

    @property
    def interrupted(self) -> bool:
        """Whether this process received SIGINT; once `requested` is True, whether any process did."""
        return self._agreement.reason == "interrupted" or signal.SIGINT in self._received

    def requested(self) -> bool:
        """Whether to save and stop here. The n-th call has the same answer in every process."""
        return self._agreement.reached()

    def unless_stopped[**P, R](self, wait: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Returns the result of `wait`; None if the run must stop, which also cancels the wait. Counts as `requested`.

        Args:
            wait: a function whose result may be discarded and which may be cancelled.
            args, kwargs: its arguments.
        """
        try:
            self._waiting = True
            result = None if self._agreement.is_next else wait(*args, **kwargs)
        except _WaitCancelled:
            result = None
        finally:
            self._waiting = False
        return None if self.requested() else result

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != _WAKE:
            self._received.add(number)
            self._agreement.request("interrupted" if self.interrupted else "preempted")
        if self._waiting and self._agreement.is_next:
            self._waiting = False
            raise _WaitCancelled

    def _wake(self) -> None:
        if self._in_main and self._waiting:
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)

    def _end_on_second_signal(self, watched: list[signal.Signals]) -> None:
        """Starts the thread that ends the process at the second of these signals."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=_end_at_second, args=(reader, set(watched)), daemon=True, name="signals")
        thread.start()
        # Run in reverse order: stop sending signals to the socket, close it for the thread, join the thread.
        self._restore.callback(reader.close)
        self._restore.callback(thread.join)
        self._restore.callback(writer.close)
        self._restore.callback(signal.set_wakeup_fd, former)


def _end_at_second(reader: socket.socket, watched: set[signal.Signals]) -> None:
    """Reads signal numbers until the other end closes; ends the process at the second watched signal."""
    first_at, interrupted = None, False
    while numbers := reader.recv(64):
        now = time.monotonic()
        for number in numbers:
            if number not in watched:
                continue
            interrupted |= number == signal.SIGINT
            if first_at is None:
                first_at = now
            elif now - first_at > timeouts.SAME_SIGNAL_S:
                _end_now(Interrupted if interrupted else Preempted)


def _end_now(kind: type[ConvoyError]) -> NoReturn:
    os.write(2, b"\nSecond signal: ending now, without the save in progress.\n")
    text = "a second signal ended this process at once, without the save in progress. Earlier checkpoints are intact."
    shutdown.end(kind(text))
