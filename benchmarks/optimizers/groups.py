"""Groups of runs: tuning runs, of which the best is repeated with other seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.optimizers import rows
from benchmarks.optimizers.rows import Row, Run, Value

TUNE, FINAL = "tune", "final"
TUNING_SEED = 0


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of a chunk that are compared.

    Attributes:
        tuning: the tuning runs, in the order in which they are trained.
        seeds: the seeds of the repetitions of the best of them.
    """

    tuning: Sequence[Run]
    seeds: Sequence[int] = ()

    def final_runs(self, found: Sequence[Row]) -> list[Run]:
        """Returns the repetitions of the best tuning run; none before all tuning runs have rows."""
        known = rows.by_key(found)
        if not all(run.key in known for run in self.tuning):
            return []
        chosen = min((known[run.key] for run in self.tuning), key=lambda row: row.final)
        return [dataclasses.replace(chosen.run, kind=FINAL, seed=seed) for seed in self.seeds]


def tuned(
    chunk: str,
    group: str,
    task: str,
    optimizer: str,
    points: Sequence[Mapping[str, Value]],
    steps: int,
    seeds: Sequence[int] = rows.SEEDS,
) -> Group:
    """Returns a group whose tuning runs differ in their settings."""
    runs = [Run(chunk, group, task, optimizer, TUNE, point, TUNING_SEED, steps) for point in points]
    return Group(runs, seeds)
