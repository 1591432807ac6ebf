"""Loops in processes of their own, a turn at a time: what two programs with other libraries or other devices need.

Owns: the lines between the two. A worker is told a number of steps on its standard input, runs them, and answers
one line of JSON with their losses; at the end of its input it says how much memory it had at most. Imports nothing but
the standard library, so that a worker may run in any Python.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

PREFIX = "@turn "


def serve(turn: Callable[[int], Sequence[float]]) -> None:
    """The worker's side: answers until there is nothing more to do. `turn(steps)` returns a loss for each step."""
    for line in sys.stdin:
        losses = turn(int(line))
        print(PREFIX + json.dumps([float(loss) for loss in losses]), flush=True)
    print(PREFIX + json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024), flush=True)


class Worker:
    """The other side: a process that runs steps when it is told to."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )

    def turn(self, steps: int) -> list[float]:
        """Runs so many steps and returns their losses."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> int:
        """Ends the process and returns the bytes of memory that it had at most."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = self._answer()
        self._process.wait()
        return peak

    def _answer(self):
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(PREFIX):
                return json.loads(line.removeprefix(PREFIX))
        raise RuntimeError(f"{' '.join(self._process.args[:4])}: ended with {self._process.wait()}")  # pyright: ignore
