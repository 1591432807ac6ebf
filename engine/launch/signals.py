"""Being asked to stop while other processes do the work: SIGINT and SIGTERM are noted and passed on.

Owns: the handlers of both signals in a launcher. Does not own: what the processes do about a signal
(`resilience/preemption.py`), or the launcher's exit code.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

_LOOK_S = 0.05  # between two looks while a wait goes on


class Signals:
    """Context manager: while it is open, SIGINT and SIGTERM do not end this process. For the main thread."""

    def __init__(self):
        self._received: list[int] = []
        self._told = 0  # how many of them were passed on
        self._pass_on: Callable[[int], None] | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._restore.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        self._restore.close()

    @property
    def received(self) -> tuple[int, ...]:
        """The signals so far."""
        return tuple(self._received)

    @contextlib.contextmanager
    def passed_to(self, pass_on: Callable[[int], None]) -> Iterator[None]:
        """Calls `pass_on` with each signal; first with those that came while nobody listened."""
        self._pass_on = pass_on
        try:
            self._tell()
            yield
        finally:
            self._pass_on = None

    def wait(self, seconds: float) -> None:
        """Waits so long, or until a signal has come."""
        end = time.monotonic() + seconds
        while not self._received and (left := end - time.monotonic()) > 0:
            time.sleep(min(_LOOK_S, left))

    def _on_signal(self, number: int, frame: object) -> None:
        self._received.append(number)
        self._tell()

    def _tell(self) -> None:
        while self._pass_on is not None and self._told < len(self._received):
            self._told += 1  # before the call, which a handler may interrupt
            self._pass_on(self._received[self._told - 1])
