"""Ends a process with its parent, so that nothing that a run has started outlives it.

On Linux the kernel kills the process (`prctl(2)`, PR_SET_PDEATHSIG), even if it is stuck or stopped. Its parent is then
the *thread* that started it, which must live as long as the process is to.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def end_with(parent: int) -> Callable[[], None] | None:
    """Returns what a new process calls so that it is killed when `parent` dies; None except on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up now: a forked process should do little before its exec

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(128 + signal.SIGKILL)

    return end_with_parent


def live_on() -> None:
    """Undoes `end_with` for this thread; does nothing except on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
