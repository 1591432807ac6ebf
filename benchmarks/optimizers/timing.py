"""The chunks that measure the time of a step of each optimizer on a task, in turns in one process.

Rows of runs that were trained hours apart have step times that other processes have disturbed to different degrees.
"""

from collections.abc import Sequence

from benchmarks.optimizers import spaces
from benchmarks.optimizers.groups import Group
from benchmarks.optimizers.optimizers import OPTIMIZERS
from benchmarks.optimizers.rows import Run

TIME = "time"
"""Kind of these runs."""
STEPS, PARTS = 160, 8
"""Steps of each optimizer, and the turns that they take. The fastest part counts."""


def chunk_name(task: str) -> str:
    """Returns the name of the chunk that measures a task."""
    return f"{TIME}-{task}"


def groups(task: str, optimizers: Sequence[str]) -> list[Group]:
    """Returns a group for each optimizer on a task, with one run at a usual point."""
    found = []
    for name in optimizers:
        settings = spaces.points(OPTIMIZERS[name])[0]
        found.append(Group([Run(chunk_name(task), name, task, name, TIME, settings, 0, STEPS)]))
    return found
