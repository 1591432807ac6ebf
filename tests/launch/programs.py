"""Helpers to check that no process that a test started is still running."""

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(lines: list[str]) -> list[int]:
    """Returns the process ids in lines such as `[0] 17 18` or `is 17 18`."""
    return [int(word) for line in lines for word in line.split()[1:]]


def wait_until_gone(expected: list[int]) -> None:
    """Waits until none of the processes is running; fails after 180 s."""
    end = time.monotonic() + 180
    while any(map(alive, expected)):
        assert time.monotonic() < end, [pid for pid in expected if alive(pid)]
        time.sleep(0.02)
