"""Detects that this process was stopped by a signal, such as SIGSTOP or a suspended Slurm job, and now continues.

Only SIGCONT distinguishes a stopped process from a process whose threads waited long for the GIL.
"""

import signal
import threading
import time
from collections.abc import Callable

from engine.cluster import signal_thread
from engine.cluster.shutdown import RunThread

_TICK_S = 0.1  # accuracy of the measured time
_RECENT_S = 2.0  # the thread may tick before SIGCONT is read


def watch(on_continue: Callable[[float], None], stopping: threading.Event) -> threading.Thread | None:
    """Starts a thread that measures how long this process is stopped.

    Args:
        on_continue: called with the seconds of a stop, in a thread, when this process continues.
        stopping: ends the thread.

    Returns:
        The thread; None if this is not the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    clock = _Clock()

    def on_signal(number: int) -> None:
        if not stopping.is_set():
            on_continue(clock.stopped_s())

    def tick() -> None:
        while not stopping.wait(_TICK_S):
            clock.tick()

    signal.signal(signal.SIGCONT, lambda number, frame: None)  # without a handler, Python does not report the signal
    signal_thread.watch((signal.SIGCONT,), on_signal)
    thread = RunThread(tick, "watch_stop_signal")
    thread.start()
    return thread


class _Clock:
    """Measures the longest recent time between two ticks of a thread."""

    def __init__(self) -> None:
        self._last = self._gap_at = time.monotonic()
        self._gap_s = 0.0

    def tick(self) -> None:
        """Ends the present time between two ticks."""
        now = time.monotonic()
        if now - self._last > 2 * _TICK_S:
            self._gap_s, self._gap_at = now - self._last, now
        self._last = now

    def stopped_s(self) -> float:
        """Returns the seconds since the last tick, or those of a longer, recent gap between two ticks."""
        now = time.monotonic()
        return max(now - self._last, self._gap_s if now - self._gap_at < _RECENT_S else 0.0)
