"""The trials of a sweep that are not finished, and what the run directories say about them."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from engine.base.errors import ConvoyError
from engine.checkpoint.policy import read_results
from engine.checkpoint.store import CheckpointStore
from engine.config.schema import Plain
from engine.experiments.record import STATUS, read_record
from engine.experiments.statistics import t_interval
from engine.launch.supervisor import Failure, Supervisor, kill_signature
from engine.run import status
from engine.run.directory import RunDirectory
from engine.sweeps.workers import Job

FAILED, OUT_OF_MEMORY = "failed", "out of memory"
_OUT_OF_MEMORY = re.compile(r"out of memory|lack of memory", re.IGNORECASE)
_NUMBERS = re.compile(r"[\d.]+")
_LOG_BYTES = 1 << 14  # of the end of a log that are read for its last line


@dataclass(eq=False)
class SeedRun:
    """A run of a trial: one seed."""

    trial: int
    seed: int
    job: Job
    supervisor: Supervisor
    reported: int = -1
    """The newest step whose result was reported to Optuna."""
    start_at: float = 0.0
    """Monotonic time before which it is not started, after a failure."""
    value: float | None = None
    """The metric of the finished run."""


@dataclass(eq=False)
class Trial:
    """A trial that is not finished."""

    number: int
    values: Mapping[str, Plain]
    began: float
    """Seconds since the epoch."""
    runs: list[SeedRun] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a run has ended, from its directory."""

    step: int
    total: int | None
    value: float | None
    metrics: tuple[str, ...]

    @property
    def is_early(self) -> bool:
        """Whether it ended before its last step."""
        return self.total is not None and self.step < self.total


def read_end(run: Path, metric: str) -> Ended:
    """Returns how a run has ended. Its value is that of its best checkpoint if it selects one, else the latest.

    A value that is not finite is returned only if the run has no other.
    """
    record = read_record(run, run.name)
    value = record.metrics.get(metric)
    if value is None:
        with suppress(ConvoyError):
            value = status.read(run / STATUS).metrics.get(metric)
    return Ended(record.step, record.total_steps, value, tuple(record.metrics))


def is_done(run: Path) -> bool:
    """Returns whether a run was trained to its end, or was ended by a hook."""
    file = run / STATUS
    return file.exists() and status.read(file).state == "done"


def new_results(run: SeedRun, metric: str) -> list[tuple[int, float]]:
    """Returns (step, value) of the evaluations that were not reported yet; NaN for a value that is not finite."""
    try:
        results = read_results(run.job.run / "checkpoints")
    except ConvoyError:  # the run itself reports it
        return []
    found = [
        (step, each[metric]) for step, each in sorted(results.items()) if step > max(0, run.reported) and metric in each
    ]
    return [(step, value if math.isfinite(value) else math.nan) for step, value in found]


def problem_of(run: SeedRun, log: Path, code: int) -> str:
    """Returns why a run has failed, without a full stop: the sentence in its status, else the last line of its log."""
    found = ""
    with suppress(ConvoyError):
        found = status.read(run.job.run / STATUS).reason
    if (line := last_line(log)) and (not found or _OUT_OF_MEMORY.search(line)):
        found = line
    return (found or f"ended with exit code {code}; its output is in {log}").rstrip(".")


def failure_of(run: SeedRun, problem: str, code: int) -> Failure:
    """Returns the failure of a run for its supervisor: the same sentence again, whatever its numbers, is a loop."""
    checkpoint = CheckpointStore(RunDirectory(run.job.run).checkpoints).latest()
    signature = kill_signature(code) or _NUMBERS.sub("", problem)
    with suppress(ConvoyError):
        if status.read(run.job.run / STATUS).state == "preempted":
            signature = ""
    return Failure(code, signature, checkpoint or 0, checkpoint, out_of_memory=kind_of(problem) == OUT_OF_MEMORY)


def kind_of(problem: str) -> str:
    """Returns OUT_OF_MEMORY or FAILED."""
    return OUT_OF_MEMORY if _OUT_OF_MEMORY.search(problem) else FAILED


def last_line(log: Path) -> str:
    """Returns the last line of a log; "" if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def mean_of(values: list[float]) -> tuple[float, list[float] | None]:
    """Returns the mean over seeds and its 95 % interval, from a t distribution; None for fewer than two seeds."""
    interval = t_interval(values)
    limits = [interval.low, interval.high]
    return sum(values) / len(values), limits if all(map(math.isfinite, limits)) else None
