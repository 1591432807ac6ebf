"""The summary of a run: results, time, files, and the next command or Python call to run."""

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.base import formatting
from engine.observe.writer import MEASURED, ROW_KEYS
from engine.run.directory import RunDirectory
from engine.storage.mounts import shown

_MAX_RESULTS = 24  # rows of results


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of one attempt of a run."""

    state: str  # done, failed, preempted or interrupted, as in status.json
    name: str  # name of the config
    directory: RunDirectory
    step: int  # completed updates
    total_steps: int
    reason: str = ""  # why the run ended before its last step, as a sentence
    metrics: Mapping[str, float] = field(default_factory=dict)  # latest value of each: {"heldout/accuracy": 0.98}
    best: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # metric -> (step, value) of its best value
    checkpoints: Sequence[int] = ()  # steps of the stored checkpoints
    wall_s: float = 0.0  # wall time of this attempt
    compile_s: float | None = None  # part of it that was spent on compilation
    rates: Mapping[str, float] = field(default_factory=dict)  # Throughput.total()
    data: str = ""  # whether reading data slows down the run, and what would help; `Reading.sentence`
    scheduled: bool = False  # whether the learning rate follows a schedule that depends on the total
    command: str | None = None  # command that starts the same run again; None: with the stored config
    objects: Sequence[str] = ()  # sections of the config that are objects of Python: "task", "evaluations.heldout.data"
    kept: bool = True  # whether the run directory is kept
    trial: bool = False  # whether it only tried the config, as --fast-dev-run: there is nothing to train longer
    verbose: bool = False  # whether the text also has what the engine measures outside of the steps

    @property
    def resume_command(self) -> str:
        """The command that starts the same run again."""
        if self.command:
            return self.command
        path = shlex.quote(str(self.directory))
        return f"convoy train --config={path} --workdir={path}"

    def _repr_html_(self) -> str:
        """Returns the summary as tables, for notebooks."""
        from engine.base import html

        groups = [_results(self), _time(self), _files(self), _next_rows(self)]
        return html.paragraph(_headline(self)) + "".join(html.table(rows) for rows in groups if rows)


def summary_text(summary: Summary) -> str:
    """Returns the summary as a few aligned lines of ASCII that end with the next command or call to run."""
    parts = [
        _headline(summary),
        _table(_results(summary)),
        _table(_time(summary)),
        _table(_files(summary)),
        _table(_next_rows(summary)),
    ]
    return shown("\n\n".join(part for part in parts if part) + "\n")


def _headline(summary: Summary) -> str:
    where = f"step {formatting.progress(summary.step, summary.total_steps)}"
    attempt = f", attempt {summary.directory.attempt}" if summary.directory.attempt > 1 else ""
    lines = [f"{summary.name or summary.directory.path.name}: {summary.state} at {where}{attempt}"]
    if summary.state == "done" and summary.reason:  # otherwise an error follows, with the reason as its message
        lines.append(summary.reason)
    return "\n".join(lines)


def _results(summary: Summary) -> list[tuple[str, str]]:
    rows = []
    for name, value in summary.metrics.items():
        if name in ROW_KEYS or name in summary.rates or (name == "skipped" and not value):
            continue
        if name in MEASURED and not summary.verbose:
            continue
        best = summary.best.get(name)
        note = "" if best is None else f"   best {formatting.number(best[1])} at step {best[0]:,}"
        rows.append((name, formatting.number(value) + note))
    if len(rows) > _MAX_RESULTS:
        kept = [row for row in rows if row[0] in summary.best or "/" not in row[0].partition("/")[2]]
        kept = kept[:_MAX_RESULTS]
        rows = [*kept, ("...", f"{len(rows) - len(kept)} more in metrics.jsonl")]
    return rows


def _time(summary: Summary) -> list[tuple[str, str]]:
    rates = summary.rates
    compiling = "" if not summary.compile_s else f", {formatting.duration(summary.compile_s)} of it compiling"
    rows = [("time", formatting.duration(summary.wall_s) + compiling)]
    if "examples_per_s" in rates:
        rows.append(
            (
                "throughput",
                f"{formatting.number(round(rates['examples_per_s']))} examples/s, "
                f"{formatting.number(1e3 * rates['step_time_s'])} ms a step, "
                f"{rates['data_wait']:.1%} of the time waiting for data",
            )
        )
    if summary.data:
        rows.append(("data", summary.data))
    if "flop_per_s" in rates and ("mfu" in rates or summary.verbose):  # on a CPU there is no peak to compare it with
        peak = f", {rates['mfu']:.1%} of the peak (MFU)" if "mfu" in rates else ""
        rows.append(("compute", f"{formatting.number(rates['flop_per_s'] / 1e12)} TFLOP/s{peak}"))
    return rows


def _files(summary: Summary) -> list[tuple[str, str]]:
    if not summary.kept:
        return [("run", "not kept; use --workdir=DIR to keep it")]
    run = summary.directory
    rows = [("run", str(run))]
    if summary.checkpoints:
        steps = ", ".join(map(str, summary.checkpoints))  # without separators, as --step accepts them
        rows.append(("checkpoints", f"{run.checkpoints}   step{'s' * (len(summary.checkpoints) > 1)} {steps}"))
    if run.metrics.exists():
        rows.append(("metrics", str(run.metrics)))
    if run.tensorboard.exists():
        path = shlex.quote(str(run.tensorboard))
        installed = importlib.util.find_spec("tensorboard") is not None
        note = f"tensorboard --logdir {path}" if installed else f"{path}   (pip install tensorboard to view it)"
        rows.append(("tensorboard", note))
    if run.figures.exists():
        rows.append(("figures", str(run.figures)))
    if run.profile.exists():
        rows.append(("profile", str(run.profile)))
    return rows


def _next_rows(summary: Summary) -> list[tuple[str, str]]:
    return _next_calls(summary) if summary.objects else _next_commands(summary)


def _next_commands(summary: Summary) -> list[tuple[str, str]]:
    if not summary.kept:
        return []
    rows = []
    if summary.checkpoints:
        rows.append(("evaluate", f"convoy evaluate {shlex.quote(str(summary.directory))}"))
    if summary.trial:
        return rows
    if summary.state == "done" and summary.reason:
        rows.append(("continue", f"{summary.resume_command}   (with other settings of stop, or of the hook)"))
    elif summary.state == "done":
        flag = " --accept-schedule-change" if summary.scheduled else ""
        rows.append(("train longer", f'{summary.resume_command} --config.train.total="..."{flag}'))
    elif summary.checkpoints:
        rows.append((f"resume from {max(summary.checkpoints)}", summary.resume_command))
    else:
        rows.append(("start again", f"{summary.resume_command}   (no checkpoint was written)"))
    return rows


def _next_calls(summary: Summary) -> list[tuple[str, str]]:
    """Returns the Python calls for a run with objects, which the command line cannot build."""
    if not summary.kept:
        return []
    run, rows = repr(str(summary.directory)), []
    if summary.checkpoints:
        rows.append(("evaluate", f"engine.evaluate({', '.join([run, *_passed(summary, 'task', 'evaluation_data')])})"))
    if summary.trial:
        return rows
    again = [*_passed(summary, "task", "data", "evaluation_data", "hooks"), f"workdir={run}"]
    resume = f"engine.train({', '.join([run, *again])})"
    if summary.state == "done" and summary.reason:
        rows.append(("continue", f"{resume}   (with other settings of stop, or of the hook)"))
    elif summary.state == "done":
        again += ["accept_schedule_change=True"] if summary.scheduled else []
        longer = f'engine.config.load({run}, ["train.total=..."])'
        rows.append(("train longer", f"engine.train({', '.join([longer, *again])})"))
    elif summary.checkpoints:
        rows.append((f"resume from {max(summary.checkpoints)}", resume))
    else:
        rows.append(("start again", f"{resume}   (no checkpoint was written)"))
    return rows


def _passed(summary: Summary, *names: str) -> list[str]:
    """Returns `name=name` for each of these arguments of Python whose objects a config cannot hold."""
    arguments = {"evaluations": "evaluation_data"}
    given = {arguments.get(first, first) for first in (path.partition(".")[0] for path in summary.objects)}
    return [f"{name}={name}" for name in names if name in given]


def _table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)
