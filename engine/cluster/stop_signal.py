"""Detects that this process was stopped by a signal, such as SIGSTOP or a suspended Slurm job, and now continues.

Only SIGCONT distinguishes a stopped process from a process whose threads waited long for the GIL. Python calls signal
handlers on the main thread, which may be stuck in a collective. So a thread reads the numbers of the signals that have
arrived (`signal.set_wakeup_fd`).
"""

import select
import signal
import socket
import threading
import time
from collections.abc import Callable

_TICK_S = 0.1  # accuracy of the measured time
_pair: tuple[socket.socket, socket.socket] | None = None  # open until the process ends, as signals arrive until then


def watch(on_continue: Callable[[float], None], stopping: threading.Event) -> threading.Thread | None:
    """Starts a thread that calls `on_continue(seconds)` when this process continues after a stop.

    Args:
        on_continue: receives how long the process was stopped.
        stopping: ends the thread.

    Returns:
        The thread; None if this is not the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    global _pair
    reader, writer = _pair = socket.socketpair()
    writer.setblocking(False)
    signal.signal(signal.SIGCONT, lambda number, frame: None)  # without a handler, Python does not report the signal
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def follow() -> None:
        last = time.monotonic()
        while not stopping.is_set():
            arrived = reader.recv(64) if select.select([reader], [], [], _TICK_S)[0] else b""
            now = time.monotonic()
            if signal.SIGCONT in arrived:
                on_continue(now - last)
            last = now

    thread = threading.Thread(target=follow, name="watch_stop_signal", daemon=True)
    thread.start()
    return thread
