"""The table of `convoy runs`: one line for each run, with the settings in which the runs differ."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from engine.base import formatting
from engine.experiments.record import SWEEP_HOOK, RunRecord

MOST_SETTINGS, MOST_METRICS = 5, 3  # columns
_LONGEST = 40  # characters of a cell


def differing_settings(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the names of the settings that are not equal in all runs whose config can be read, in their order.

    The name of the run, its parent, and settings of logs, caches, profiles and of a sweep are left out: they change no
    result, or have a column of their own.
    """
    configs = [run.config for run in runs if run.config]
    names = dict.fromkeys(name for config in configs for name in config if not _is_label(name))
    return [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]


def _is_label(name: str) -> bool:
    sections = ("log", "cache", "profile", "tiny", "init")
    return name == "name" or name.split(".")[0] in sections or name.startswith(SWEEP_HOOK)


def metric_columns(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the metrics of the table: those that select checkpoints, then those of evaluations, else the loss."""
    names = dict.fromkeys(str(run.config.get("checkpoint.best") or "") for run in runs)
    names |= dict.fromkeys(name for run in runs for name in run.metrics if "/" in name)
    having = [name for name in names if any(name in run.metrics for run in runs)]
    return having[:MOST_METRICS] or [name for name in ("loss",) if any(name in run.metrics for run in runs)]


def table(runs: Sequence[RunRecord], now: datetime | None = None) -> str:
    """Returns the runs as a table for a terminal.

    Args:
        runs: the runs, in the order of the lines.
        now: the time to which ages refer; None: this moment.
    """
    now = now or datetime.now(UTC)
    metrics, settings = metric_columns(runs), differing_settings(runs)
    shown = settings[:MOST_SETTINGS]
    parents = any(run.parent for run in runs)
    head = ["run", "state", "step", "age", *metrics, *shown, *(["started from"] if parents else [])]
    rows = [
        [
            run.path,
            run.state,
            _progress(run),
            _age(run.updated, now),
            *(_cell(run.metrics.get(name)) for name in metrics),
            *(_cell(run.config.get(name)) for name in shown),
            *([run.parent] if parents else []),
        ]
        for run in runs
    ]
    lines = formatting.aligned([head, *rows])
    if len(settings) > len(shown):
        lines.append(f"{len(settings) - len(shown)} more settings differ: --json prints all.")
    return "\n".join(lines)


def _progress(run: RunRecord) -> str:
    return formatting.progress(run.step, run.total_steps) if run.total_steps is not None else f"{run.step:,}"


def _age(updated: str, now: datetime) -> str:
    if not updated:
        return "-"
    return formatting.duration(max(0.0, (now - datetime.fromisoformat(updated)).total_seconds()))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = formatting.number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
