"""CPU time of this process, and the time in which it wanted to run but could not.

The kernel counts both times since the process started. Outside Linux they are 0.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_CGROUPS = Path("/sys/fs/cgroup")


class Load(NamedTuple):
    """Seconds since the process started."""

    cpu_s: float
    """CPU time of all threads."""
    delay_s: float
    """Time in which a thread was ready to run but had no core (run delay), summed over the threads."""
    throttled_s: float
    """Time in which a CPU limit (quota of a control group) stopped the process, summed over the cores."""


class HostLoad:
    """Reads the load of this process. One reading takes about 7 us per thread."""

    def __init__(self) -> None:
        self._delays_ns: dict[str, int] = {}  # thread -> its run delay
        self._delay_ns = 0
        self._membership = b""  # content of /proc/self/cgroup
        self._statistics: list[Path] = []

    def read(self) -> Load:
        """Returns the load so far."""
        return Load(time.process_time(), self._run_delay_ns() / 1e9, self._read_throttled_s())

    def _run_delay_ns(self) -> int:
        """Returns the sum over all threads. The delay of a thread that has ended stays in the sum."""
        delays = {}
        with suppress(OSError):
            for thread in os.listdir("/proc/self/task"):
                with suppress(OSError, IndexError, ValueError):  # the thread has ended
                    delays[thread] = int(_content(f"/proc/self/task/{thread}/schedstat").split()[1])
        self._delay_ns += sum(max(0, delay - self._delays_ns.get(thread, 0)) for thread, delay in delays.items())
        self._delays_ns = delays
        return self._delay_ns

    def _read_throttled_s(self) -> float:
        with suppress(OSError):
            if (membership := _content("/proc/self/cgroup")) != self._membership:
                self._membership, self._statistics = membership, cpu_statistics(membership.decode())
        total = 0.0
        for path in self._statistics:
            with suppress(OSError, ValueError):
                total += throttled_s(_content(path).decode())
        return total


def cpu_statistics(membership: str, root: Path = _CGROUPS) -> list[Path]:
    """Returns the `cpu.stat` files of a process's control group and of the groups above it.

    A limit of any of them throttles the process. In a container, the path in /proc may be that of the host; then only
    the root of the container exists.

    Args:
        membership: content of /proc/self/cgroup.
        root: where control groups are mounted.
    """
    found: dict[Path, None] = {}
    for line in membership.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        groups = Path(path.strip("/"))
        for group in (groups, *groups.parents):
            if (file := mount / group / "cpu.stat").exists():
                found[file] = None
    return list(found)


def throttled_s(statistics: str) -> float:
    """Returns the throttled seconds in the content of `cpu.stat`; its unit depends on the version of control groups."""
    values = dict(line.split() for line in statistics.splitlines() if line.count(" ") == 1)
    return int(values.get("throttled_usec", 0)) / 1e6 + int(values.get("throttled_time", 0)) / 1e9


def _content(path: str | Path) -> bytes:
    """Returns the content of a small file. `Path.read_text` takes three times as long."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)
