"""Runs a benchmark as a process on one device."""

import sys

from tests import runs


def benchmark(name: str, *args: str, seconds: float = 300) -> str:
    """Runs benchmarks/<name>.py and returns its output. `seconds` is a timeout."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *args]
    done = runs.run(command, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout
