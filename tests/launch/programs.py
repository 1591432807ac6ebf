"""Processes that tests start: which of them are left."""

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(lines: list[str]) -> list[int]:
    """The numbers in lines such as `[0] 17 18`, or `is 17 18`."""
    return [int(word) for line in lines for word in line.split()[1:]]


def wait_until_gone(gone: list[int]) -> None:
    """Fails when one of them is left."""
    end = time.monotonic() + 10
    while any(map(alive, gone)):
        assert time.monotonic() < end, [pid for pid in gone if alive(pid)]
        time.sleep(0.02)
