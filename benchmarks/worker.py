"""Training loops in other processes, one turn at a time: for programs with other libraries or other devices.

A worker reads a number of steps from standard input, trains, and prints one line of JSON with the losses. When its
input ends, it prints its peak memory. This file imports the standard library only, so that a worker runs in any Python.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

PREFIX = "@turn "
"""Begins a line of the protocol; other lines of a worker are ignored."""


def rss_peak() -> int:
    """Returns the most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(turn: Callable[[int], Sequence[float]], peak_bytes: Callable[[], int] = rss_peak) -> None:
    """Runs a worker until its input ends.

    Args:
        turn: `turn(steps)` trains and returns a loss for each step.
        peak_bytes: returns the peak memory that the worker reports at its end.
    """
    for line in sys.stdin:
        losses = turn(int(line))
        print(PREFIX + json.dumps([float(loss) for loss in losses]), flush=True)
    print(PREFIX + json.dumps(peak_bytes()), flush=True)


class Worker:
    """A process that runs `serve`. A context manager: its exit ends the process.

    Args:
        command: starts the worker.
        env: variables in addition to those of this process.
        errors: file for its standard error; None: that of this process.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, errors: IO[str] | None = None):
        self._command = list(command)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def turn(self, steps: int) -> list[float]:
        """Trains for so many steps and returns their losses."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `_receive` reports
            print(steps, file=self._process.stdin, flush=True)
        return self._receive()

    def close(self) -> int:
        """Ends the process and returns the most memory that it had, in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = self._receive()
        self._process.wait()
        return peak

    def kill(self) -> None:
        """Ends the process at once; a `turn` that waits for it raises RuntimeError."""
        self._process.kill()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # closing flushes what the worker did not read
                pipe.close()
        self._process.wait()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(PREFIX):
                return json.loads(line.removeprefix(PREFIX))
        raise RuntimeError(f"{' '.join(self._command[:4])}: ended with {self._process.wait()}")
