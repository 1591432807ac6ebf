"""Counts the model FLOPs of a step once, in a thread: to trace the loss of a large model takes seconds."""

import threading
from collections.abc import Callable

from engine.base.user_errors import describe


class FlopsCount:
    """Counts in a thread from the start on. The rows of metrics wait for it; a run that is asked to stop does not.

    Args:
        count: returns the model FLOPs of a step.
        say: called with a sentence if `count` fails, in the thread that waits.
    """

    def __init__(self, count: Callable[[], float], say: Callable[[str], None]):
        self._count, self._say = count, say
        self._value: float | None = None
        self._error: Exception | SystemExit | None = None  # an error of the author's code, until it is reported
        self._ended = threading.Event()  # set when the count has ended or is abandoned
        # No daemon: the exit of Python would stop such a thread inside JAX, which crashes the process.
        self._thread = threading.Thread(target=self._run, name="flops-count")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def __call__(self, wait: bool) -> float | None:
        """Returns the FLOPs; None if the count has failed, is abandoned, or has not ended and `wait` is False."""
        if wait:
            self._ended.wait()
            error, self._error = self._error, None
            if error is not None:  # a missing metric must not end the run
                text = describe(error)
                self._say(f"flop_per_s and mfu are left out: tracing the loss for one device failed: {text}")
        return self._value

    def close(self, wait: bool) -> None:
        """Waits for the end of the thread, or abandons the count: no thread waits for it any more.

        A count that is abandoned cannot be interrupted, so its thread ends later.
        """
        if not wait:
            self._ended.set()
        elif self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._value = self._count()
        except (Exception, SystemExit) as error:
            self._error = error
        self._ended.set()
