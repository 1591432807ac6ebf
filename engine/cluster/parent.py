"""The end of a process with its parent: nothing that a run has started outlives it, however it ends.

Owns: what a new process calls for that, and to take it back. Does not own: who starts it (`launch/`, `data/`).

On Linux the kernel kills it (`prctl(2)`, PR_SET_PDEATHSIG), be it stuck or stopped. Its parent is then the *thread*
that started it, which must live as long as the process is to. In the process, the wish belongs to the thread that
made it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def end_with(parent: int) -> Callable[[], None] | None:
    """Returns what a new process calls so that it is killed when `parent` dies; None elsewhere than on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # found now: a forked process should do little before its exec

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(128 + signal.SIGKILL)

    return end_with_parent


def live_on() -> None:
    """Takes back what this thread has asked for by `end_with`; does nothing elsewhere than on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
