"""The table of the trials of a sweep, the best first: for the terminal, as CSV and for JSON."""

import csv
import dataclasses
import io
from typing import Any

from engine.base.formatting import aligned, number, progress
from engine.sweeps.records import COMPLETE, SweepRecord, TrialRecord

COLUMNS = ("rank", "trial", "state", "value", "low", "high", "seeds", "steps", "seconds", "problem")
"""Columns of the CSV file, followed by the settings."""


def table(sweep: SweepRecord, most: int | None = None) -> str:
    """Returns the trials as a table for a terminal.

    Args:
        sweep: the sweep.
        most: rows at most; None shows all.
    """
    if not sweep.trials:
        return "No trial has begun."
    settings, metric = list(sweep.definition.space), sweep.definition.metric
    seeds = ["seeds"] if sweep.definition.seeds > 1 else []
    head = ["rank", "trial", "state", metric, *(["95 % interval"] if seeds else []), *seeds, "steps", *settings]
    shown = sweep.trials[:most]
    rows = [
        [
            rank, str(trial.number), trial.kind or trial.state, "" if trial.value is None else number(trial.value),
            *([_interval(trial), str(len(trial.results))] if seeds else []),
            f"{trial.steps:,}" if trial.total is None else progress(trial.steps, trial.total),
            *(_cell(trial.values[name]) if name in trial.values else "" for name in settings),
        ]
        for rank, trial in zip(ranks(sweep), shown, strict=False)
    ]  # fmt: skip
    more = len(sweep.trials) - len(shown)
    return "\n".join([*aligned([head, *rows]), *([f"and {more} more"] if more else [])])


def to_csv(sweep: SweepRecord) -> str:
    """Returns the trials as CSV with full precision; settings that a trial does not use are empty."""
    file = io.StringIO()
    writer, settings = csv.writer(file, lineterminator="\n"), list(sweep.definition.space)
    writer.writerow([*COLUMNS, *settings])
    for rank, trial in zip(ranks(sweep), sweep.trials, strict=True):
        low, high = trial.interval or ("", "")
        writer.writerow(
            [
                rank, trial.number, trial.kind or trial.state, "" if trial.value is None else repr(trial.value),
                low, high, len(trial.results) or "", trial.steps, trial.seconds, trial.problem,
                *(trial.values.get(name, "") for name in settings),
            ]
        )  # fmt: skip
    return file.getvalue()


def to_json(sweep: SweepRecord) -> list[dict[str, Any]]:
    """Returns a dict for each trial, the best first."""
    return [
        {
            "rank": int(rank) if rank else None,
            **{
                field.name: getattr(trial, field.name)
                for field in dataclasses.fields(TrialRecord)
                if field.name not in ("started", "ended")
            },
        }
        for rank, trial in zip(ranks(sweep), sweep.trials, strict=True)
    ]


def ranks(sweep: SweepRecord) -> list[str]:
    """Returns the rank of each trial as text; only completed trials have one."""
    return [str(place) if trial.state == COMPLETE else "" for place, trial in enumerate(sweep.trials, start=1)]


def _interval(trial: TrialRecord) -> str:
    return "" if trial.interval is None else f"{number(trial.interval[0])} to {number(trial.interval[1])}"


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
