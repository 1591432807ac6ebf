"""The report of a sweep: `convoy report FOLDER` of a folder with a sweep, as one HTML file."""

from pathlib import Path
from typing import Any

from engine.base.errors import RunError
from engine.base.formatting import duration, number
from engine.config.schema import Plain
from engine.experiments.record import is_run
from engine.report.gather import Gathered, rounded
from engine.report.page import report, write
from engine.sweeps.domains import Range, When
from engine.sweeps.importance import Importance, importance_of
from engine.sweeps.records import COMPLETE, FAILED, PRUNED, RUNNING, SweepRecord, TrialRecord, read_sweep
from engine.sweeps.space_text import parse_domain
from engine.sweeps.table import ranks

MOST_RUNS = 60
"""Runs whose curves are in a report: those of the best trials."""


def write_sweep_report(folder: Path, output: Path) -> None:
    """Writes the report of a sweep, also while its driver runs.

    Args:
        folder: the folder of the sweep.
        output: the file; it appears complete, and an earlier one is replaced.

    Raises:
        RunError: the folder holds no sweep, no run of it has begun, or the report cannot be written.
        ConfigError: the storage of the sweep cannot be read.
    """
    sweep = read_sweep(folder)
    runs = [(trial, folder / path) for trial in sweep.trials for path in trial.runs if is_run(folder / path)]
    if not runs:
        raise RunError(f"{folder}: no trial has a run yet, so there is nothing to report.")
    shown = [(trial, Gathered(path)) for trial, path in runs[:MOST_RUNS]]
    found = sweep_data(sweep, importance_of(folder), [trial for trial, _ in shown])
    if len(runs) > MOST_RUNS:
        found["note"] = f"The curves are those of the best {MOST_RUNS} of {len(runs)} runs."
    write(output, report([run for _, run in shown], search_s=0, sweep=found))


def sweep_data(sweep: SweepRecord, importance: Importance, runs: list[TrialRecord]) -> dict[str, Any]:
    """Returns what a report shows of a sweep.

    Args:
        sweep: the sweep.
        importance: the importance of its settings.
        runs: the trial of each run of the report.
    """
    names = list(sweep.definition.space)
    domains = [parse_domain(text, name) for name, text in sweep.definition.space.items()]
    inner = [domain.domain if isinstance(domain, When) else domain for domain in domains]
    first = {trial.number: place for place, trial in reversed([*enumerate(runs)])}
    members: dict[int, list[int]] = {}
    for place, trial in enumerate(runs):
        members.setdefault(trial.number, []).append(place)
    return {
        "title": f"{sweep.path.absolute().name}: {sweep.definition.metric}",
        "metric": sweep.definition.metric,
        "note": "",
        "names": names,
        "logs": [isinstance(domain, Range) and domain.log for domain in inner],
        "rows": [
            _row(trial, rank, names, first.get(trial.number))
            for rank, trial in zip(ranks(sweep), sweep.trials, strict=True)
        ],
        "importance": [[name, round(share, 4)] for name, share in importance.shares.items()],
        "importanceNote": importance.note,
        "tiles": _tiles(sweep),
        "groups": [{"runs": places, "label": f"trial {number}"} for number, places in members.items()],
        "settings": [[name, [_shown(trial.values.get(name)) for trial in runs]] for name in names],
    }


def _row(trial: TrialRecord, rank: str, names: list[str], run: int | None) -> dict[str, Any]:
    low, high = trial.interval or (None, None)
    return {
        "rank": int(rank) if rank else None,
        "number": trial.number,
        "state": trial.kind or trial.state,
        "value": None if trial.value is None else rounded(trial.value),
        "low": None if low is None else rounded(low),
        "high": None if high is None else rounded(high),
        "seeds": len(trial.results),
        "steps": trial.steps,
        "values": [_shown(trial.values.get(name)) for name in names],
        "problem": trial.problem,
        "run": run,
    }


def _shown(value: Plain) -> Plain:
    return value if value is None or isinstance(value, int | float | str) else repr(value)


def _tiles(sweep: SweepRecord) -> list[list[str]]:
    best, definition = sweep.best, sweep.definition
    counts = {state: len(sweep.of_state(state)) for state in (COMPLETE, PRUNED, FAILED, RUNNING)}
    kinds = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    seconds = sum(trial.seconds or 0.0 for trial in sweep.trials)
    return [
        *([[f"best {definition.metric}", number(best.value), f"trial {best.number}"]] if best else []),
        ["trials", f"{len(sweep.trials)} of {definition.trials}", kinds],
        ["steps", f"{sum(trial.steps for trial in sweep.trials):,}", "of all trials"],
        ["time of trials", duration(seconds), "added up"],
        ["sampler", definition.sampler, f"pruned by {definition.prune}" if definition.prune else "without pruning"],
    ]
