"""Signal handlers of a launcher: SIGINT and SIGTERM are recorded and forwarded to the processes."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from engine.launch import timeouts


class Signals:
    """The signals that a job has received so far, and their way to its processes.

    A context manager for the main thread: while it is open, SIGINT and SIGTERM do not end this process. On another
    machine than that of the launcher, `receive` is called instead.
    """

    def __init__(self):
        self._received: list[int] = []
        self._forwarded = 0  # number of received signals that were forwarded
        self._forward: Callable[[int], None] | None = None
        self._restore = contextlib.ExitStack()
        self._delivering = threading.RLock()  # a signal may interrupt the main thread that holds it

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._restore.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda number, frame: self.receive(number))
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore.close()

    @property
    def received(self) -> tuple[int, ...]:
        """The signals received so far, in order."""
        return tuple(self._received)

    @contextlib.contextmanager
    def forwarded_to(self, forward: Callable[[int], None]) -> Iterator[None]:
        """Calls `forward` with each signal, including earlier signals that were not forwarded yet."""
        self._forward = forward
        try:
            self._deliver()
            yield
        finally:
            self._forward = None

    def wait(self, seconds: float) -> None:
        """Waits for `seconds`, or until a signal has been received."""
        end = time.monotonic() + seconds
        while not self._received and (left := end - time.monotonic()) > 0:
            time.sleep(min(timeouts.SIGNAL_POLL_S, left))

    def receive(self, number: int) -> None:
        """Records a signal, and forwards it."""
        self._received.append(number)
        self._deliver()

    def _deliver(self) -> None:
        with self._delivering:
            while self._forward is not None and self._forwarded < len(self._received):
                self._forwarded += 1  # before the call, since another signal may interrupt it
                self._forward(self._received[self._forwarded - 1])
