"""Stops a run on SIGTERM (preempted by a scheduler) or SIGINT (interrupted by a person).

The loop polls `Preemption.requested`. All processes stop at the same call of it (`StepAgreement`), even if only one
process received the signal. Before the first steps there is nothing to save: a process that does not get to the next
poll within `timeouts.START_GRACE_S` then ends without it. A second signal ends the process immediately. Both also work
while the main thread is inside XLA (`cluster/signal_thread.py`).
"""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from engine.base.errors import EngineEnd
from engine.cluster import group, output, shutdown, verdict
from engine.cluster.exit_status import ExitStatus
from engine.cluster.signal_thread import watching
from engine.loop import timeouts

_WAKE = signal.SIGURG  # interrupts a wait of the main thread; by default it has no effect on a process
_WATCHED = (signal.SIGTERM, signal.SIGINT)
_NOTHING_LOST = "No step was made that is not saved. The same command starts again from the newest checkpoint, if any."
_runs = itertools.count()  # runs of this process, one after the other: each has its own topic


class Preempted(EngineEnd, SystemExit):
    """A scheduler stopped the run; it can resume from its last checkpoint.

    A SystemExit: a program that does not catch it ends with 42, and `except Exception` does not catch it.
    """

    exit_code = ExitStatus.RETRY
    state = "preempted"
    everywhere = True
    from_outside = True

    def __init__(self, text: str):
        super().__init__(text)
        self.code = int(self.exit_code)  # that of the process; otherwise Python prints the text and exits with 1


class Interrupted(EngineEnd, KeyboardInterrupt):
    """A person stopped the run. A KeyboardInterrupt: `except Exception` does not catch it."""

    exit_code = ExitStatus.INTERRUPTED
    state = "interrupted"
    everywhere = True
    from_outside = True


class _WaitCancelled(BaseException):
    """Ends a wait of the main thread. Not an Exception, so that error handlers of the user do not catch it."""


@contextlib.contextmanager
def start_ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the process at once with a sentence and 42: nothing is to be saved before the training.

    Without it the process would end with 143, and its status would remain "starting". In another thread than the main
    thread it has no effect.
    """

    def end(number: int) -> None:
        shutdown.end(Preempted(f"asked to stop while the run was starting. {_NOTHING_LOST}"))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with watching((signal.SIGTERM,), end):
            yield
    finally:
        signal.signal(signal.SIGTERM, former or signal.SIG_DFL)


class Preemption:
    """Context manager: while it is open, signals make `requested` return True instead of ending the process.

    Handlers are installed in the main thread only (Python allows no other). In another thread, such as a notebook's
    worker, only requests of other processes count. On exit the former handlers are restored.

    Args:
        activity: returns what the main thread does, such as "compiling".
    """

    def __init__(self, activity: Callable[[], str] = lambda: "busy"):
        self.has_steps_to_save = False
        """Whether a stop waits for the main thread, however long it takes. The loop sets it after its first steps."""
        self._activity = activity
        self._answered = False  # whether `requested` has returned True
        self._first_at: float | None = None  # monotonic time of the first signal
        self._timer: threading.Timer | None = None  # ends the process if the main thread does not answer
        self._received: set[int] = set()
        self._count, self._passed_on = 0, verdict.passed_on()  # signals in this process; earlier ones of the parent
        self._waiting = False  # whether the main thread is in a wait that may be cancelled
        self._agreement = group.StepAgreement(f"stop/{next(_runs)}", self._wake)
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._restore.enter_context(watching(_WATCHED, self._on_signal_in_thread))
            for number in (*_WATCHED, _WAKE):
                self._restore.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._on_signal)
        self._restore.enter_context(self._agreement)
        return self

    def __exit__(self, *exception: object) -> None:
        self._answered = True
        self._restore.close()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def answered(self) -> bool:
        """Whether `requested` has returned True."""
        return self._answered

    @property
    def received(self) -> bool:
        """Whether this process has received a signal."""
        return bool(self._received)

    @property
    def interrupted(self) -> bool:
        """Whether this process received SIGINT; once `requested` is True, whether any process did."""
        return self._agreement.reason == "interrupted" or signal.SIGINT in self._received

    def requested(self) -> bool:
        """Whether to save and stop here. The n-th call has the same answer in every process."""
        self._answered = self._answered or self._agreement.is_next
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
        """Called in a thread when the processes have agreed to stop."""
        if self._in_main and self._waiting:
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
        if self._agreement.is_next:
            self._start_timer()

    def _on_signal_in_thread(self, number: int) -> None:
        """Starts the timer at the first signal, and ends the process at the second."""
        now = time.monotonic()
        self._received.add(number)
        self._count += 1
        by_parent = (verdict.passed_on() - self._passed_on) & 0xFF
        if self._first_at is None:
            self._first_at = now
            self._start_timer()
        elif now - self._first_at > timeouts.SAME_SIGNAL_S and max(by_parent, self._count - by_parent) > 1:
            output.show("\nSecond signal: ending now, without the save in progress.")
            self._end_process(
                "a second signal ended this process at once, without the save in progress. Earlier checkpoints are "
                "intact.",
                state="failed",
            )

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = shutdown.start_timer(timeouts.START_GRACE_S, self._end_unanswered)

    def _end_unanswered(self) -> None:
        if not (self._answered or self.has_steps_to_save):
            busy = f"still {self._activity()} after {timeouts.START_GRACE_S:g} s"
            self._end_process(f"asked to stop before the first step, and {busy}. {_NOTHING_LOST}")

    def _end_process(self, text: str, state: str = "") -> NoReturn:
        error = (Interrupted if self.interrupted else Preempted)(text)
        error.state = state or error.state
        shutdown.end(error)
