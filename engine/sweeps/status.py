"""`convoy sweep status`: progress, the best trial, time left, failed trials and the importance of settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.formatting import aligned, duration, number, progress
from engine.sweeps.importance import Importance, importance_of
from engine.sweeps.records import COMPLETE, FAILED, PRUNED, RUNNING, STATES, SweepRecord, TrialRecord, read_sweep
from engine.sweeps.space import overrides
from engine.sweeps.table import table, to_json
from engine.sweeps.trials import OUT_OF_MEMORY

MOST_ROWS = 15  # of the table in the text


@dataclass(frozen=True)
class TimeLeft:
    """An estimate of the time until all trials have ended.

    Attributes:
        seconds: None if no trial has finished yet.
        how: how it was computed.
    """

    seconds: float | None
    how: str


@dataclass(frozen=True)
class SweepStatus:
    """What `convoy sweep status` prints: `text()` or `data()`."""

    sweep: SweepRecord
    importance: Importance

    @property
    def left(self) -> int:
        """Number of trials that have not begun."""
        return max(0, self.sweep.definition.trials - len(self.sweep.trials))

    @property
    def steps(self) -> int:
        """Trained steps of all trials."""
        return sum(trial.steps for trial in self.sweep.trials)

    def text(self) -> str:
        """Returns the status for a terminal."""
        sweep, best = self.sweep, self.sweep.best
        rows = [("sweep", _what(sweep)), ("trials", self._counts())]
        rows += [("running" if not row else "", _running(sweep, each)) for row, each in enumerate(self._running)]
        if best is not None:
            rows += [("best", f"trial {best.number}: {sweep.definition.metric} {_measured(best)}")]
            flag = "--config." if sweep.definition.reference else ""  # a function has arguments
            rows += [("", f"{flag}{text}") for text in overrides(best.values)]
        else:
            rows += [("best", "none yet: no trial is complete")]
        rows += [("steps", f"{self.steps:,} trained"), ("time", self._time())]
        rows += [("importance" if not row else "", each) for row, each in enumerate(self._importance())]
        for row, trial in enumerate(sweep.of_state(FAILED)):
            out_of_memory = " (out of memory)" if trial.kind == OUT_OF_MEMORY else ""
            rows += [("failed" if not row else "", f"trial {trial.number}{out_of_memory}: {trial.problem}")]
        return "\n".join([*aligned(rows), "", table(sweep, MOST_ROWS)])

    def data(self) -> dict[str, Any]:
        """Returns the status for JSON."""
        sweep, left = self.sweep, time_left(self.sweep)
        counts = {state: len(sweep.of_state(state)) for state in STATES}
        return {
            "path": str(sweep.path),
            "metric": sweep.definition.metric,
            "direction": sweep.definition.direction,
            "trials": sweep.definition.trials,
            "finished": counts[COMPLETE] + counts[PRUNED] + counts[FAILED],
            "left": self.left,
            **counts,
            "out_of_memory": sum(trial.kind == OUT_OF_MEMORY for trial in sweep.trials),
            "steps": self.steps,
            "seconds": _seconds(sweep),
            "seconds_left": left.seconds,
            "seconds_left_how": left.how,
            "best": None if sweep.best is None else sweep.best.number,
            "importance": self.importance.shares,
            "importance_note": self.importance.note,
            "space": sweep.definition.space,
            "rows": to_json(sweep),
        }

    @property
    def _running(self) -> list[TrialRecord]:
        return sorted(self.sweep.of_state(RUNNING), key=lambda trial: trial.number)

    def _counts(self) -> str:
        counts = {state: len(self.sweep.of_state(state)) for state in STATES}
        finished = counts[COMPLETE] + counts[PRUNED] + counts[FAILED]
        kinds = ", ".join(f"{counts[state]} {state}" for state in (COMPLETE, PRUNED, FAILED) if counts[state])
        return (
            f"{finished} of {self.sweep.definition.trials} finished{f' ({kinds})' if kinds else ''}, "
            f"{counts[RUNNING]} running, {self.left} to come"
        )

    def _time(self) -> str:
        used, left = f"{duration(_seconds(self.sweep))} of trials", time_left(self.sweep)
        if left.seconds is None:
            return f"{used}; time left: {left.how}"
        return f"{used}; about {duration(left.seconds)} left ({left.how})" if left.seconds else used

    def _importance(self) -> list[str]:
        shares = [f"{share:4.0%}  {name}" for name, share in self.importance.shares.items()]
        return [*shares, f"({self.importance.note})"] if shares else [self.importance.note]


def status_of(path: Path) -> SweepStatus:
    """Returns the status of the sweep in a folder, also while its driver runs.

    Raises:
        RunError: the folder holds no sweep.
        ConfigError: its storage cannot be read.
    """
    return SweepStatus(read_sweep(path), importance_of(path))


def time_left(sweep: SweepRecord) -> TimeLeft:
    """Estimates the time until all trials have ended: trials to come x mean time of a trial / trials at a time."""
    finished = [trial.seconds for trial in sweep.of_state(COMPLETE, PRUNED) if trial.seconds is not None]
    running = sweep.of_state(RUNNING)
    count = max(0, sweep.definition.trials - len(sweep.trials))
    if not count and not running:
        return TimeLeft(0.0, "all trials have ended")
    if not finished:
        return TimeLeft(None, "not known before a trial has finished")
    mean, slots = sum(finished) / len(finished), at_a_time(sweep)
    rest = sum(max(0.0, mean - (trial.seconds or 0.0)) for trial in running)
    how = f"{count} to come and {len(running)} running, {duration(mean)} each, the mean of {len(finished)}"
    return TimeLeft((count * mean + rest) / slots, f"{how}; {slots} at a time")


def at_a_time(sweep: SweepRecord) -> int:
    """Returns the largest number of trials that ran at the same time, by the times of the storage."""
    times = []
    for trial in sweep.trials:
        if trial.started is not None:
            times.append((trial.started, 1))
            if trial.ended is not None:
                times.append((trial.ended, -1))
    most = now = 0
    for _, change in sorted(times):  # an end comes before a start at the same time
        now += change
        most = max(most, now)
    return max(1, most)


def _seconds(sweep: SweepRecord) -> float:
    return sum(trial.seconds or 0.0 for trial in sweep.trials)


def _what(sweep: SweepRecord) -> str:
    found = sweep.definition
    more = [f"pruned by {found.prune}"] if found.prune else []
    more += [f"{found.seeds} seeds each"] if found.seeds > 1 else []
    more += [f"{found.budget} each"] if found.budget else []
    return ", ".join([f"{sweep.path}: {found.sampler}, {found.metric} {found.direction}", *more])


def _running(sweep: SweepRecord, trial: TrialRecord) -> str:
    steps = f"{trial.steps:,}" if trial.total is None else progress(trial.steps, trial.total)
    value = "" if trial.value is None else f", {sweep.definition.metric} {number(trial.value)}"
    problem = f"; {trial.problem}" if trial.problem else ""
    return f"trial {trial.number}: {steps} steps{value}{problem}"


def _measured(trial: TrialRecord) -> str:
    if trial.interval is None:
        return number(trial.value)
    low, high = trial.interval
    return f"{number(trial.value)} (95 % interval {number(low)} to {number(high)} over {len(trial.results)} seeds)"
