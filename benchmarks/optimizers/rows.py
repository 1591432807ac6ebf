"""One row for each trained run: what was run, and what came of it. The file of rows is committed.

A run that has a row is not trained again. A row is written whole or not at all: a line that a killed process left
unfinished is removed by the next writer, and ignored by readers.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine.run import jsonl

ROWS = Path(__file__).parent / "rows.jsonl"
"""The committed rows."""
MAX_BYTES = 500_000
"""Largest size of the committed file."""
DIGITS = 5
"""Significant digits of the numbers of a row."""
SEEDS = (1, 2, 3)
"""Seeds of the repetitions of a tuned point."""
POINTS = 20
"""Evaluations of a run."""

type Value = float | int | str


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained: a point of a space, and a seed.

    Attributes:
        chunk: name of the chunk that it belongs to.
        group: runs of a chunk that are compared; the best tuning run of a group is repeated with other seeds.
        task: name of a task, or of a problem.
        optimizer: name of an optimizer.
        kind: "tune", "final" or "time".
        settings: name -> value; `tasks.py` documents the names.
        seed: seed of the weights, of the order of the data and of all random numbers.
        steps: number of steps.
    """

    chunk: str
    group: str
    task: str
    optimizer: str
    kind: str
    settings: Mapping[str, Value]
    seed: int
    steps: int

    @property
    def evaluations(self) -> list[int]:
        """The steps after which the run is evaluated: evenly spaced, and the last one."""
        return sorted({max(1, round(self.steps * (place + 1) / POINTS)) for place in range(POINTS)})

    @property
    def key(self) -> str:
        """Identifies the run in the file of rows."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """A run and its results.

    Attributes:
        run: the run.
        loss: the value by which runs are judged, at the steps `at`; smaller is better.
        metric: a second value at these steps, such as the accuracy; empty if the task has none.
        cpu_s: CPU seconds of all steps.
        step_ms: CPU milliseconds of a step in the fastest part between two evaluations, which other processes have
            disturbed least.
        state_bytes: size of the optimizer state.
        parameter_bytes: size of the trained parameters.
        diverged: whether the run was ended since its loss was not finite or no update was finite.
    """

    run: Run
    loss: Sequence[float]
    metric: Sequence[float]
    cpu_s: float
    step_ms: float
    state_bytes: int
    parameter_bytes: int
    diverged: bool

    @property
    def at(self) -> list[int]:
        """The steps of the evaluations, up to where the run ended."""
        return self.run.evaluations[: len(self.loss)]

    @property
    def final(self) -> float:
        """The loss at the last step; infinite for a run that has diverged."""
        last = self.loss[-1] if self.loss and not self.diverged else math.inf
        return last if math.isfinite(last) else math.inf

    def steps_to(self, target: float) -> float:
        """Returns the step at which the loss reaches a target, between two evaluations by a line; infinite if never."""
        if self.diverged:
            return math.inf
        for place, (step, loss) in enumerate(zip(self.at, self.loss, strict=True)):
            if loss <= target:
                if not place or self.loss[place - 1] <= loss:
                    return float(step)
                share = (self.loss[place - 1] - target) / (self.loss[place - 1] - loss)
                return self.at[place - 1] + share * (step - self.at[place - 1])
        return math.inf

    def to_line(self) -> str:
        """Returns the row as a line of JSON, without the end of the line."""
        results = {name: value for name, value in vars(self).items() if name != "run"}
        rounded = {name: _rounded(value) for name, value in results.items()}
        return json.dumps({**dataclasses.asdict(self.run), **rounded}, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> "Row":
        """Returns the row of a line of `to_line`."""
        found = json.loads(line)
        run = Run(**{field.name: found.pop(field.name) for field in dataclasses.fields(Run)})
        numbers = {name: [_number(x) for x in found.pop(name)] for name in ("loss", "metric")}
        return cls(run=run, **numbers, **found)


def read(path: Path = ROWS) -> list[Row]:
    """Returns the rows of a file; none if there is no file. An unfinished last line is ignored."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    found = by_key(Row.from_line(line) for line in lines if line.endswith("\n"))
    return list(found.values())  # a run that two processes have trained counts once


def append(row: Row, path: Path = ROWS) -> None:
    """Appends a row to a file. Several processes may do so."""
    file = jsonl.open_for_append(path)
    try:
        os.write(file, f"{row.to_line()}\n".encode())  # one call: whole rows of several processes do not mix
        os.fsync(file)
    finally:
        os.close(file)


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """Returns key of the run -> row."""
    return {row.run.key: row for row in rows}


def best(rows: Sequence[Row], chunk: str, group: str) -> Row | None:
    """Returns the tuning run of a group with the smallest final loss; None if the group has no row."""
    tuned = [row for row in rows if (row.run.chunk, row.run.group, row.run.kind) == (chunk, group, "tune")]
    return min(tuned, key=lambda row: row.final, default=None)


def finals(rows: Sequence[Row], chunk: str, group: str) -> list[Row]:
    """Returns the runs of the best point of a group with several seeds."""
    return [row for row in rows if (row.run.chunk, row.run.group, row.run.kind) == (chunk, group, "final")]


def _rounded(value: object) -> object:
    """Returns a value with short numbers; JSON has no infinity, so that numbers that are not finite become text."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return [_rounded(x) for x in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _number(value: float | str) -> float:
    return float(value)
