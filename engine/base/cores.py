"""CPU cores of this host that this process may use, and how many of them are idle."""

import os
from pathlib import Path

_STATISTICS = Path("/proc/stat")


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_seconds() -> float | None:
    """Returns the seconds that the usable cores have been idle since the start of the system, added up over them.

    None if the system does not state them. Cores that only wait for storage count as idle.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    try:
        lines = [line.split() for line in _STATISTICS.read_text().splitlines()]
        ticks = [int(words[4]) + int(words[5]) for words in lines if words and words[0] in {f"cpu{n}" for n in usable}]
    except (OSError, ValueError, IndexError):
        return None
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
