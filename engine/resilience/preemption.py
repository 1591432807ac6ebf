"""Being asked to stop: signals become an answer that the loop asks for, once a dispatch.

Owns: the handlers of SIGTERM and SIGINT while a run is under way, agreement on the step between processes, and the
two errors that a stopped run ends with. Does not own: the save before the end (`trainer.py`), or starting again.

Terms. *Preempted*: SIGTERM, as a scheduler sends it; the exit code says "start me again". *Interrupted*: SIGINT
(Ctrl-C); the exit code says "a person stopped this".

A second signal ends the process at once, also while it compiles or waits for a device: a thread reads the signals
from a socket, because Python's own handlers run only when the main thread is back in Python. A save that is under way
is then lost; the checkpoints before it are not touched.

With `jax.distributed`, JAX catches SIGTERM itself and tells every process; all see True at the same step. SIGINT is
passed on to it. A second SIGTERM then has the system's own effect: the process dies of it (143, retried as well).
"""

import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any

from engine.cluster import exit_codes
from engine.config.errors import ConvoyError

# A terminal and a launcher may both pass on one Ctrl-C; copies that near are one signal.
SAME_SIGNAL_S = 0.1


class Preempted(ConvoyError):
    """The run was asked to stop and can go on from its last checkpoint."""

    exit_code = exit_codes.RETRY
    state = "preempted"
    everywhere = True
    from_outside = True


class Interrupted(ConvoyError):
    """A person stopped the run."""

    exit_code = exit_codes.INTERRUPTED
    state = "interrupted"
    everywhere = True
    from_outside = True


class Preemption:
    """Context manager: while it is open, signals are answers of `requested` and not the end.

    Handlers are installed in the main thread only (Python allows no other); elsewhere, as in a notebook's worker,
    nothing is asked for until `jax.distributed` tells. On exit the former handlers are back.
    """

    def __init__(self):
        self._received: set[int] = set()
        self._asked: int | None = None  # last step that `requested` was asked for, and its answer
        self._answer = False
        self._agreed_interrupt = False
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        import jax

        self._distributed = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            watched = [signal.SIGINT] if self._distributed else [signal.SIGTERM, signal.SIGINT]
            self._watch_for_a_second(watched)
            for number in watched:
                self._restore.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._restore.close()

    @property
    def interrupted(self) -> bool:
        """Whether a person asked, as far as this process (or, after `requested` was True, any process) knows."""
        return self._agreed_interrupt or signal.SIGINT in self._received

    def requested(self, step: int) -> bool:
        """Whether to save and stop at this step; the same answer in every process.

        Args:
            step: steps done; every process asks at the same, growing steps. They need not follow one another.
        """
        if not self._distributed:
            return bool(self._received)
        if step == self._asked:
            return self._answer
        from jax.experimental import multihost_utils

        # JAX agrees on the step after the greatest that any process has asked for, so none may be left out. A notice
        # that came before any process asked has step 1 as its answer. Orbax asks too, for the step that it saves: these
        # must be steps, not a count of our own.
        steps = [min(1, step), step] if self._asked is None else range(self._asked + 1, step + 1)
        self._asked, self._answer = step, any(multihost_utils.reached_preemption_sync_point(s) for s in steps)
        if self._answer:
            self._agreed_interrupt = bool(multihost_utils.process_allgather(self.interrupted).any())
        return self._answer

    def _on_signal(self, number: int, frame: Any) -> None:
        first = not self._received
        self._received.add(number)
        if first and self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's notifier takes it from here

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
                os.write(2, b"\nSecond signal: ending now, without the save that was under way.\n")
                os._exit(exit_codes.INTERRUPTED if interrupted else exit_codes.RETRY)
