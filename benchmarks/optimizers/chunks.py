"""The chunks of the laboratory: groups of runs that one command trains, each in at most 25 minutes of one core.

A group has tuning runs with seed 0. The one with the smallest final loss is then repeated with the seeds `SEEDS`, which
the tuning has not seen. `further.py` has the chunks that need results of others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from benchmarks.optimizers import further, rows, spaces, timing, widths
from benchmarks.optimizers.groups import Group, tuned
from benchmarks.optimizers.optimizers import FULL, OPTIMIZERS
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.tasks import TASKS, TINY, task_of

ON_TWO = ("vit", "lm")
"""Tasks of the optimizers that are not compared in full."""
TRIALS = "trials"
"""Name of the only group of a chunk that compares optimizers."""
TINY_OPTIMIZERS = ("adamw", "lion")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Runs that one command trains, in order.

    Attributes:
        name: its name.
        what: what it shows, for people.
        groups: returns its groups, given all rows; it raises `further.MissingRows` if a chunk is missing before it.
        needs: names of the chunks that `groups` reads.
        in_turns: whether its runs are trained together, in turns, to compare their times.
    """

    name: str
    what: str
    groups: Callable[[Sequence[Row]], Sequence[Group]]
    needs: Sequence[str] = ()
    in_turns: bool = False

    def next_runs(self, found: Sequence[Row]) -> list[Run]:
        """Returns the next run that has no row, or all runs that are trained in turns; none if the chunk is done."""
        known = rows.by_key(found)
        runs = [run for group in self.groups(found) for run in (*group.tuning, *group.final_runs(found))]
        missing = [run for run in runs if run.key not in known]
        return runs if missing and self.in_turns else missing[:1]


def trials(task: str, optimizer: str, count: int = spaces.TRIALS, seeds: Sequence[int] = rows.SEEDS) -> Chunk:
    """Returns the chunk that tunes an optimizer on a task."""
    name = chunk_name(task, optimizer)
    points = spaces.points(OPTIMIZERS[optimizer], count)
    group = tuned(name, TRIALS, task, optimizer, points, task_of(task).steps, seeds)
    return Chunk(name, f"{OPTIMIZERS[optimizer].title} on {task_of(task).title}", lambda found: [group])


def times(task: str, optimizers: Sequence[str]) -> Chunk:
    """Returns the chunk that measures the time of a step of optimizers on a task."""
    groups = timing.groups(task, optimizers)
    return Chunk(timing.chunk_name(task), f"time of a step on {task_of(task).title}", lambda found: groups, (), True)


def chunk_name(task: str, optimizer: str) -> str:
    """Returns the name of the chunk that tunes an optimizer on a task."""
    return f"{task}-{optimizer}"


def optimizers_of(task: str) -> tuple[str, ...]:
    """Returns the optimizers that are compared on a task."""
    return tuple(OPTIMIZERS) if task in ON_TWO else FULL


def chunks() -> Mapping[str, Chunk]:
    """Returns all chunks by name, in the order in which they should run."""
    found = [trials(task, optimizer) for task in TASKS for optimizer in optimizers_of(task)]
    found += [Chunk(*each) for each in (*further.CHUNKS, *widths.CHUNKS)]
    found += [times(task, optimizers_of(task)) for task in TASKS]
    return {chunk.name: chunk for chunk in found}


def tiny_chunks() -> Mapping[str, Chunk]:
    """Returns chunks that try the programs: a small task, two learning rates and two seeds."""
    found = [trials(task, optimizer, 2, (1, 2)) for task in TINY for optimizer in TINY_OPTIMIZERS]
    found += [times(task, TINY_OPTIMIZERS) for task in TINY]
    return {chunk.name: chunk for chunk in found}
