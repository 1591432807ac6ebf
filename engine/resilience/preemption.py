"""Stopping a run on request: SIGTERM and SIGINT become an answer that the loop asks for at each boundary.

SIGTERM comes from a scheduler and means "start me again"; SIGINT (Ctrl-C) means "a person stopped this". All processes
stop at the same call of `requested` (`StepAgreement`), also when only one got the signal: once a batch is drawn, in an
evaluation too, and at a boundary with events.

A second signal ends the process at once, also while it compiles or waits for a device: a thread reads the signals from
a socket, because Python's handlers run only when the main thread is back in Python. A save in flight is then lost; the
checkpoints before it are not touched.
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

_WAKE = signal.SIGURG  # interrupts a wait of the main thread; by itself it has no effect on a process
_runs = itertools.count()  # of this process, one after the other: each has a topic of its own


class Preempted(ConvoyError):
    """The run was asked to stop and can go on from its last checkpoint."""

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
    """Takes the main thread out of a wait; no handler of errors in the user's code catches it."""


class Preemption:
    """Context manager: while it is open, signals are answers of `requested` and do not end the process.

    Handlers are installed in the main thread only (Python allows no other); elsewhere, as in a notebook's worker, only
    the request of another process counts. On exit the former handlers are back.
    """

    def __init__(self):
        self._received: set[int] = set()
        self._waiting = False  # the main thread, in a wait that may be cancelled
        self._agreement = group.StepAgreement(f"stop/{next(_runs)}", self._wake)
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            watched = [signal.SIGTERM, signal.SIGINT]
            self._watch_for_a_second(watched)
            for number in (*watched, _WAKE):
                self._restore.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._on_signal)
        self._restore.enter_context(self._agreement)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore.close()

    @property
    def interrupted(self) -> bool:
        """Whether a person asked, as far as this process (or, after `requested` was True, any process) knows."""
        return self._agreement.reason == "interrupted" or signal.SIGINT in self._received

    def requested(self) -> bool:
        """Whether to save and stop here. The n-th call has the same answer in every process."""
        return self._agreement.reached()

    def unless_stopped[**P, R](self, wait: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Returns what `wait` returns, then asks; None where the answer is yes, or the wait was cancelled for it.

        Args:
            wait: has no lasting effect when it is cancelled, or when the answer is yes.
            args, kwargs: for it.
        """
        try:
            self._waiting = True
            found = None if self._agreement.is_next else wait(*args, **kwargs)
        except _WaitCancelled:
            found = None
        finally:
            self._waiting = False
        return None if self.requested() else found

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

    def _watch_for_a_second(self, watched: list[signal.Signals]) -> None:
        """Starts the thread that ends the process at the second of these signals."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=_end_at_second, args=(reader, set(watched)), daemon=True, name="signals")
        thread.start()
        # In reverse: no more signals to the socket, its end for the thread, the thread's own end.
        self._restore.callback(reader.close)
        self._restore.callback(thread.join)
        self._restore.callback(writer.close)
        self._restore.callback(signal.set_wakeup_fd, former)


def _end_at_second(reader: socket.socket, watched: set[signal.Signals]) -> None:
    """Reads signal numbers until the other end closes; ends the process at the second one that counts."""
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
    os.write(2, b"\nSecond signal: ending now, without the save that was under way.\n")
    text = "a second signal ended this process at once, without the save that was under way. What is saved stays."
    shutdown.end(kind(text))
