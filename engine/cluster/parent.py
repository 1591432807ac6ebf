"""Kills a process when its parent dies, so that no process of a run outlives it.

On Linux the kernel kills the process (`prctl(2)`, PR_SET_PDEATHSIG), even if it is stuck or stopped. The parent is the
*thread* that started the process, so that thread must live as long as the process.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def kill_with(parent: int) -> Callable[[], None] | None:
    """Returns a function that a new process calls, to be killed when `parent` dies; None except on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # before the fork: a forked process should do little before exec

    def kill_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(128 + signal.SIGKILL)

    return kill_with_parent
