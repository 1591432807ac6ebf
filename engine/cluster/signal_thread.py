"""Calls functions in a thread when signals arrive, even while the main thread is not in Python.

Python runs signal handlers on the main thread once it is back in Python, so not while it is inside XLA or a collective.
Python also writes the numbers of arrived signals to a socket at once (`signal.set_wakeup_fd`), which this thread reads.
"""

import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Iterator

from engine.cluster.shutdown import RunThread

_watches: list[tuple[frozenset[int], Callable[[int], None]]] = []
_resources = contextlib.ExitStack()


@contextlib.contextmanager
def watching(numbers: Collection[int], on_signal: Callable[[int], None]) -> Iterator[None]:
    """Calls `on_signal(number)` in the thread for each of these signals. Only the main thread may use it.

    Where two blocks watch the same signal, the inner one receives it. Each signal needs a Python handler, since Python
    reports no others.
    """
    watch(numbers, on_signal)
    added = _watches[-1]
    try:
        yield
    finally:
        _watches.remove(added)
        if not _watches:
            _resources.close()


def watch(numbers: Collection[int], on_signal: Callable[[int], None]) -> None:
    """Like `watching`, until the process ends."""
    if not _watches:
        _start()
    _watches.append((frozenset(numbers), on_signal))


def _start() -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = RunThread(_read, "signals", (reader,))
    thread.start()
    # Run in reverse order: stop sending signals to the socket, close it for the thread, join the thread.
    _resources.callback(reader.close)
    _resources.callback(thread.join)
    _resources.callback(writer.close)
    _resources.callback(signal.set_wakeup_fd, former)


def _read(reader: socket.socket) -> None:
    while numbers := reader.recv(64):
        for number in numbers:
            innermost = next((call for watched, call in reversed(_watches) if number in watched), None)
            if innermost is not None:
                innermost(number)
