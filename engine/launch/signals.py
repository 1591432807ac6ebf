"""The signal handlers of a launcher: SIGINT and SIGTERM are recorded and passed on to the processes."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from engine.launch import timeouts


class Signals:
    """Context manager, for the main thread: while it is open, SIGINT and SIGTERM do not end this process."""

    def __init__(self):
        self._received: list[int] = []
        self._passed = 0  # how many of them were passed on
        self._pass_on: Callable[[int], None] | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._restore.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore.close()

    @property
    def received(self) -> tuple[int, ...]:
        """The signals so far, in order."""
        return tuple(self._received)

    @contextlib.contextmanager
    def passed_to(self, pass_on: Callable[[int], None]) -> Iterator[None]:
        """Calls `pass_on` with each signal; first with those that came before."""
        self._pass_on = pass_on
        try:
            self._deliver()
            yield
        finally:
            self._pass_on = None

    def wait(self, seconds: float) -> None:
        """Waits `seconds`, or until a signal has come."""
        end = time.monotonic() + seconds
        while not self._received and (left := end - time.monotonic()) > 0:
            time.sleep(min(timeouts.SIGNAL_POLL_S, left))

    def _on_signal(self, number: int, frame: object) -> None:
        self._received.append(number)
        self._deliver()

    def _deliver(self) -> None:
        while self._pass_on is not None and self._passed < len(self._received):
            self._passed += 1  # before the call, which a handler may interrupt
            self._pass_on(self._received[self._passed - 1])
