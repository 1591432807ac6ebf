"""The summary of a run: what was reached, how long it took, where the files are, and the next command to type."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.mounts import shown
from engine.observe import wording
from engine.observe.writer import ROW_KEYS
from engine.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the final words are made of."""

    state: str  # done, failed, preempted or interrupted, as in status.json
    name: str  # of the config
    directory: RunDirectory
    step: int  # completed updates
    total_steps: int
    reason: str = ""  # why it ended before its total, a sentence
    metrics: Mapping[str, float] = field(default_factory=dict)  # the latest of each name: {"heldout/accuracy": 0.98}
    best: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # metric -> (step, value) of its best
    checkpoints: Sequence[int] = ()  # steps that are stored
    wall_s: float = 0.0  # seconds of this attempt, from its start to its end
    compile_s: float | None = None  # seconds of these in which programs were compiled
    rates: Mapping[str, float] = field(default_factory=dict)  # Throughput.total()
    scheduled: bool = False  # whether the learning rate follows a schedule that the total stretches
    command: str | None = None  # what starts the same run again; None: the run's own config
    kept: bool = True  # whether the directory stays

    @property
    def again(self) -> str:
        """The command that starts the same run again."""
        if self.command:
            return self.command
        path = shlex.quote(str(self.directory))
        return f"convoy train --config={path} --workdir={path}"


def summary_text(summary: Summary) -> str:
    """Returns the final words, a few aligned lines of ASCII that end with the next command to type."""
    parts = [
        _headline(summary),
        _table(_reached(summary)),
        _table(_cost(summary)),
        _table(_places(summary)),
        _table(_next(summary)),
    ]
    return shown("\n\n".join(part for part in parts if part) + "\n")


def _headline(summary: Summary) -> str:
    where = f"step {summary.step:,} of {summary.total_steps:,}"
    attempt = f", attempt {summary.directory.attempt}" if summary.directory.attempt > 1 else ""
    lines = [f"{summary.name}: {summary.state} at {where}{attempt}"]
    if summary.reason:
        lines.append(summary.reason)
    return "\n".join(lines)


def _reached(summary: Summary) -> list[tuple[str, str]]:
    rows = []
    for name, value in summary.metrics.items():
        if name in ROW_KEYS or name in summary.rates:
            continue
        best = summary.best.get(name)
        note = "" if best is None else f"   best {wording.number(best[1])} at step {best[0]:,}"
        rows.append((name, wording.number(value) + note))
    return rows


def _cost(summary: Summary) -> list[tuple[str, str]]:
    rates = summary.rates
    compiling = "" if summary.compile_s is None else f", {wording.duration(summary.compile_s)} of it compiling"
    rows = [("time", wording.duration(summary.wall_s) + compiling)]
    if "examples_per_s" in rates:
        rows.append(
            (
                "throughput",
                f"{wording.number(round(rates['examples_per_s']))} examples/s, "
                f"{wording.number(1e3 * rates['step_time_s'])} ms a step, "
                f"{rates['data_wait']:.1%} of the time waiting for data",
            )
        )
    if "flop_per_s" in rates:
        peak = f", {rates['mfu']:.1%} of the peak (MFU)" if "mfu" in rates else ""
        rows.append(("compute", f"{wording.number(rates['flop_per_s'] / 1e12)} TFLOP/s{peak}"))
    return rows


def _places(summary: Summary) -> list[tuple[str, str]]:
    if not summary.kept:
        return [("run", "not kept; --workdir=DIR would keep it")]
    run = summary.directory
    rows = [("run", str(run))]
    if summary.checkpoints:
        steps = ", ".join(map(str, summary.checkpoints))  # as --step takes them
        rows.append(("checkpoints", f"{run.checkpoints}   step{'s' * (len(summary.checkpoints) > 1)} {steps}"))
    if run.metrics.exists():
        rows.append(("metrics", str(run.metrics)))
    if run.tensorboard.exists():
        rows.append(("tensorboard", f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}"))
    if run.profile.exists():
        rows.append(("profile", str(run.profile)))
    return rows


def _next(summary: Summary) -> list[tuple[str, str]]:
    if not summary.kept:
        return []
    rows = []
    if summary.checkpoints:
        rows.append(("evaluate", f"convoy evaluate {shlex.quote(str(summary.directory))}"))
    if summary.state == "done":
        flag = " --accept-schedule-change" if summary.scheduled else ""
        rows.append(("train longer", f'{summary.again} --config.train.total="..."{flag}'))
    elif summary.checkpoints:
        rows.append((f"go on from {max(summary.checkpoints)}", summary.again))
    else:
        rows.append(("start again", f"{summary.again}   (no checkpoint was written)"))
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)
