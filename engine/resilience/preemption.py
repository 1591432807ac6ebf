"""Being asked to stop: signals become an answer that the loop asks for, again and again.

Owns: the handlers of SIGTERM and SIGINT while a run is under way, agreement between processes on the point where they
stop, the end of waits that would keep the loop from asking, and the two errors that a stopped run ends with. Does not
own: the save before the end (`trainer.py`), or starting again.

Terms. *Preempted*: SIGTERM, as a scheduler sends it; the exit code says "start me again". *Interrupted*: SIGINT
(Ctrl-C); the exit code says "a person stopped this". *Notice*: that either was received by any process. *Question*: a
call of `requested`, or the end of `unless_stopped`; every process asks the same questions in the same order: once a
batch is drawn, also in an evaluation, and before a step at which something is due.

A single process stops at its next question. Of several, each tells on a notice how many questions it has had answered,
and goes no further until all have told; all stop at the question after the greatest of these numbers, which those who
are behind still reach, since nobody needs more of the others than they have given already.

A wait for data asks nothing, perhaps for long: it is given up (`unless_stopped`) where the next question is the one at
which all stop.

A second signal ends the process at once, also while it compiles or waits for a device: a thread reads the signals
from a socket, because Python's own handlers run only when the main thread is back in Python. A save that is under way
is then lost; the checkpoints before it are not touched.
"""

import contextlib
import itertools
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from engine.cluster import kv_store, processes, shutdown
from engine.cluster.exit_status import ExitStatus
from engine.cluster.kv_store import CoordinationError
from engine.config.errors import ConvoyError

# A terminal and a launcher may both pass on one Ctrl-C; copies that near are one signal.
SAME_SIGNAL_S = 0.1
_LOOK_S = 0.5  # between two looks for a notice of another process
_WAKE = signal.SIGURG  # takes the main thread out of a wait; by itself it has no effect on a process
_runs = itertools.count()  # of this process, one after the other: each has keys of its own

_Result = TypeVar("_Result")


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


class _GivenUp(BaseException):
    """Takes the main thread out of a wait; no handler of errors of the user's code holds it up."""


class Preemption:
    """Context manager: while it is open, signals are answers of `requested` and not the end.

    Handlers are installed in the main thread only (Python allows no other); elsewhere, as in a notebook's worker,
    nothing is asked for until another process is. On exit the former handlers are back.
    """

    def __init__(self):
        self._received: set[int] = set()
        self._answered = 0  # questions, with no
        self._stop_at = math.inf  # the question, counted from 1, from which on the answer is yes
        self._agreed_interrupt = False
        self._waiting = False  # the main thread, for something that may be given up
        self._lock = threading.Lock()  # held while a question is answered, and while processes agree
        self._told = threading.Event()  # that this process was asked to stop, or that the context is left
        self._left = False
        self._key = f"stop/{next(_runs)}"
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        self._together = processes.count() > 1
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            watched = [signal.SIGTERM, signal.SIGINT]
            self._watch_for_a_second(watched)
            for number in (*watched, _WAKE):
                self._restore.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._on_signal)
        if self._together:
            thread = threading.Thread(target=self._look_for_a_notice, daemon=True, name="notice")
            thread.start()
            self._restore.callback(self._leave, thread)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._restore.close()

    def _leave(self, thread: threading.Thread) -> None:
        self._left = True
        self._told.set()
        thread.join()
        with contextlib.suppress(CoordinationError):  # for those who are behind and are asked to stop only now
            kv_store.put(f"{self._key}/answered/{processes.index()}", str(self._answered))

    @property
    def interrupted(self) -> bool:
        """Whether a person asked, as far as this process (or, after `requested` was True, any process) knows."""
        return self._agreed_interrupt or signal.SIGINT in self._received

    def requested(self) -> bool:
        """Whether to save and stop here; the same answer to the same question in every process."""
        with self._lock:
            if self._answered + 1 >= self._stop_at:
                return True
            self._answered += 1
            return False

    def unless_stopped(self, wait: Callable[..., _Result], *args: Any) -> _Result | None:
        """Returns what `wait(*args)` returns, and asks; None where the answer is yes, or the wait was given up for it.

        Args:
            wait: has no effect that matters when it does not come to its end, or when the answer is yes.
            args: for it.
        """
        try:
            self._waiting = True
            found = None if self._answered + 1 >= self._stop_at else wait(*args)
        except _GivenUp:
            found = None
        finally:
            self._waiting = False
        return None if self.requested() else found

    def _on_signal(self, number: int, frame: Any) -> None:
        if number != _WAKE:
            self._received.add(number)
            self._told.set()
            if not self._together:
                self._stop_at = 0
        if self._waiting and self._answered + 1 >= self._stop_at:
            self._waiting = False
            raise _GivenUp

    def _look_for_a_notice(self) -> None:
        """Finds that any process was asked to stop, and agrees with all on where."""
        with contextlib.suppress(CoordinationError):  # a lost process 0 is told by `peer_failure.py`
            while not self._left:
                if self._told.wait(_LOOK_S) and not self._left:
                    kv_store.put_first(f"{self._key}/notice", "interrupted" if self.interrupted else "preempted")
                if (notice := kv_store.try_get(f"{self._key}/notice")) is not None:
                    return self._agree(notice)

    def _agree(self, notice: str) -> None:
        with self._lock:
            kv_store.put(f"{self._key}/answered/{processes.index()}", str(self._answered))
            while len(told := kv_store.entries(f"{self._key}/answered")) < processes.count():
                if self._left:
                    return
                time.sleep(0.02)
            self._agreed_interrupt = notice == "interrupted"
            self._stop_at = max(map(int, told.values())) + 1
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
    """Reads signal numbers until the other end closes; leaves the process at the second one that counts."""
    first_at, interrupted = None, False
    while numbers := reader.recv(64):
        now = time.monotonic()
        for number in numbers:
            if number not in watched:
                continue
            interrupted |= number == signal.SIGINT
            if first_at is None:
                first_at = now
            elif now - first_at > SAME_SIGNAL_S:
                _end_now(Interrupted if interrupted else Preempted)


def _end_now(kind: type[ConvoyError]) -> NoReturn:
    os.write(2, b"\nSecond signal: ending now, without the save that was under way.\n")
    text = "a second signal ended this process at once, without the save that was under way. What is saved stays."
    shutdown.end(kind(text))
