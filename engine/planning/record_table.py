"""`convoy plan --runs`: a table of what was predicted and measured in each run, and the errors over all of them."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.base.errors import RunError
from engine.base.formatting import aligned, seconds_text, size_text
from engine.checkpoint.bucket_copy import readable
from engine.loop.observers import LEAST_S
from engine.planning.record import PlanFile, read
from engine.run.directory import RunDirectory

COLUMNS = (
    *("run", "mesh and settings", "devices", "rates", "predicted", "measured", "error"),
    *("memory predicted", "compiled", "error"),
)


def plans(runs: Sequence[str | Path]) -> str:
    """Returns a table of the predicted and measured time and memory of runs; does not initialize devices."""
    return plan_table([RunDirectory(readable(run)) for run in runs])


def plan_table(runs: Sequence[RunDirectory]) -> str:
    """Returns a row for each run, and lines with the median and the largest error.

    Raises:
        RunError: a directory is not that of a run.
    """
    rows: list[Sequence[str]] = [COLUMNS]
    notes: list[str] = []
    plans: dict[str, PlanFile] = {}
    for run in runs:
        try:
            plan = read(run.plan)
        except RunError as error:
            notes.append(str(error))
            continue
        if plan is None:
            run.read_config_text()  # raises RunError if this is not a run
            notes.append(f"{run}: nothing is recorded. No attempt has trained for {LEAST_S:.0f} s.")
        elif plan.predicted.problem:
            notes.append(f"{run}: no prediction: {plan.predicted.problem}")
        else:
            rows.append(_cells(str(run), plan))
            plans[str(run)] = plan
    lines = aligned(rows) if plans else []
    times = {name: plan.time_error for name, plan in plans.items() if plan.time_error is not None}
    memories = {name: plan.memory_error for name, plan in plans.items() if plan.memory_error is not None}
    within = sum(abs(error) <= plans[name].predicted.margin for name, error in times.items())
    lines += [_errors("time", times, f"; {within} of {len(times)} within the stated margin")] if times else []
    lines += [_errors("memory", memories, "")] if memories else []
    return "\n".join([*lines, *notes])


def _cells(name: str, plan: PlanFile) -> tuple[str, ...]:
    predicted, measured = plan.predicted, plan.measured
    memory = plan.memory_error
    return (
        name,
        str(predicted.candidate),
        str(predicted.machine.get("text", "")),
        "measured" if str(predicted.machine.get("source", "")).startswith("measured") else "assumed",
        f"{seconds_text(predicted.step_s)} +- {predicted.margin:.0%}",
        seconds_text(measured.step_s),
        f"{plan.time_error:+.0%}",
        size_text(predicted.bytes),
        "-" if measured.bytes is None else size_text(measured.bytes),
        "-" if memory is None else f"{memory:+.0%}",
    )


def _errors(what: str, errors: Mapping[str, float], more: str) -> str:
    worst = max(errors, key=lambda name: abs(errors[name]))
    median = statistics.median(map(abs, errors.values()))
    return f"error of the {what}: median {median:.0%}, largest {abs(errors[worst]):.0%} ({worst}){more}"
