"""Tables of the chunks that do not compare optimizers on tasks."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.optimizers import further, measures, rows, widths
from benchmarks.optimizers.optimizers import OPTIMIZERS
from benchmarks.optimizers.problems import MOMENTA, PROBLEMS, expected_risk, steady_risk
from benchmarks.optimizers.rows import Row
from benchmarks.optimizers.tables import interval, markdown, number, times, titled
from engine.experiments.statistics import t_interval

REACHED = 1e-3
"""Share of the first gap of the least squares whose steps are reported."""


def further_tables(found: Sequence[Row]) -> list[str]:
    """Returns the tables that the rows allow."""
    parts = [problem(found, name) for name in PROBLEMS]
    parts += [steady(found), schedules(found), batch_size(found), accumulation(found), precision(found)]
    parts += [settings(found, chunk) for chunk in ("ema", "clipping")]
    return list(filter(None, [*parts, widths.table(found)]))


def groups(found: Sequence[Row], chunk: str) -> list[str]:
    """Returns the groups of a chunk that have rows, in their order."""
    return list(dict.fromkeys(row.run.group for row in found if row.run.chunk == chunk))


def best_losses(found: Sequence[Row], chunk: str, group: str) -> list[float]:
    """Returns the final losses of the best point of a group over seeds; of its tuning run without repetitions."""
    repeated = rows.finals(found, chunk, group)
    best = rows.best(found, chunk, group)
    return [row.final for row in repeated] or ([best.final] if best is not None else [])


def problem(found: Sequence[Row], name: str) -> str:
    """Returns the table of the optimizers on a problem with a known answer, the smallest loss first."""
    lines = []
    for optimizer in groups(found, name):
        best = rows.best(found, name, optimizer)
        if best is None or optimizer not in OPTIMIZERS:
            continue
        losses = best_losses(found, name, optimizer)
        cells = [OPTIMIZERS[optimizer].title, interval(t_interval(losses)), number(best.run.settings["learning_rate"])]
        if name == "least_squares":
            steps = best.steps_to(REACHED)
            cells.append(f"{steps:,.0f}" if math.isfinite(steps) else "-")
        lines.append((t_interval(losses).estimate, cells))
    head = ["optimizer", "loss", "best learning rate"]
    head += [f"steps to {REACHED:g}"] if name == "least_squares" else []
    body = markdown(head, [cells for _, cells in sorted(lines)])
    return titled(f"{PROBLEMS[name]().title}, {PROBLEMS[name]().steps:,} steps", body) if lines else ""


def steady(found: Sequence[Row]) -> str:
    """Returns the risk of gradient descent with a constant learning rate, and the known one."""
    lines = []
    for momentum in MOMENTA:
        group = f"{further.STEADY}{momentum:g}"
        for row in (row for row in found if row.run.group == group):
            rate, half = float(row.run.settings["learning_rate"]), len(row.loss) // 2
            measured, known = np.mean(row.loss[half:]), np.mean(expected_risk(rate, momentum, row.at[half:]))
            cells = [f"{rate:g}", f"{momentum:g}", number(float(measured)), number(float(known))]
            lines.append([*cells, f"{measured / known:.2f}", number(steady_risk(rate, momentum))])
    head = ["learning rate", "momentum", "measured", "expected", "ratio", "steady state"]
    title = "Risk of gradient descent on the noisy quadratic, mean over the second half of the steps"
    return titled(title, markdown(head, lines)) if lines else ""


def schedules(found: Sequence[Row]) -> str:
    """Returns the final loss of schedules at several budgets, and of schedule-free AdamW without a stopping time."""
    lines = []
    for name, budgets in schedules_of(found).items():
        cells = [interval(t_interval(budgets[budget])) if budget in budgets else "" for budget in further.BUDGETS]
        lines.append([name, *cells])
    head = ["schedule", *(f"{budget:,} steps" for budget in further.BUDGETS)]
    return titled("Schedules, AdamW on the language model", markdown(head, lines)) if lines else ""


def schedules_of(found: Sequence[Row]) -> dict[str, dict[int, list[float]]]:
    """Returns schedule -> steps of the run -> final losses over seeds.

    Schedule-free AdamW is one run, whose loss at each of these steps counts.
    """
    by_name: dict[str, dict[int, list[float]]] = {}
    for group in groups(found, "schedules"):
        name, budget = group.split()
        by_name.setdefault(name, {})[int(budget)] = best_losses(found, "schedules", group)
    free = measures.final_rows(found, further.TASK, "schedule_free_adamw")
    if by_name and free:
        by_name["schedule-free AdamW, one run"] = {
            budget: [loss_at(row, budget) for row in free] for budget in further.BUDGETS
        }
    return by_name


def loss_at(row: Row, step: float) -> float:
    """Returns the loss of a run at a step, between two evaluations by a line."""
    return float(np.interp(step, row.at, row.loss))


def steps_by_batch(found: Sequence[Row]) -> tuple[float, dict[int, float]]:
    """Returns a loss that every batch size reaches, and batch size -> fewest steps to it over the learning rates."""
    by_batch: dict[int, list[Row]] = {}
    for row in found:
        if row.run.chunk == "batch-size":
            by_batch.setdefault(int(row.run.settings["batch"]), []).append(row)
    if not by_batch:
        return math.nan, {}
    lowest = [min(min(row.loss) for row in each if not row.diverged) for each in by_batch.values()]
    goal = max(lowest)
    return goal, {batch: min(row.steps_to(goal) for row in each) for batch, each in sorted(by_batch.items())}


def batch_size(found: Sequence[Row]) -> str:
    """Returns steps and examples to a loss over the batch size, with the critical batch size that fits them."""
    goal, steps = steps_by_batch(found)
    if len(steps) < 2:
        return ""
    least, critical = measures.critical_batch(list(steps), list(steps.values()))
    lines = [
        [f"{batch}", f"{count:,.0f}", f"{batch * count:,.0f}", f"{least * (1 + critical / batch):,.0f}"]
        for batch, count in steps.items()
    ]
    note = f"Loss {number(goal)}. The fit is {least:,.0f} (1 + {critical:.1f} / batch size)."
    table = markdown(["batch size", "steps", "examples", "steps of the fit"], lines)
    return titled("Steps to a loss over the batch size", f"{note}\n\n{table}")


def accumulation(found: Sequence[Row]) -> str:
    """Returns the largest difference of the losses of a batch in several microbatches, and the cost of a step."""
    runs = [row for row in found if row.run.chunk == "accumulation"]
    whole = next((row for row in runs if row.run.settings["accumulate"] == 1), None)
    if whole is None:
        return ""
    lines = []
    for row in runs:
        difference = max(abs(a - b) for a, b in zip(row.loss, whole.loss, strict=False))
        cells = [number(row.final), f"{difference:.1g}", times(row.step_ms, whole.step_ms)]
        lines.append([f"{row.run.settings['accumulate']}", *cells])
    head = ["microbatches", "final loss", "largest difference of a loss", "time of a step"]
    return titled("Accumulation, batch size 16", markdown(head, lines))


def precision(found: Sequence[Row]) -> str:
    """Returns the final loss and the time of a step in float32 and bfloat16."""
    lines, base = [], math.nan
    for name in groups(found, "precision"):
        runs = rows.finals(found, "precision", name)
        if not runs:
            continue
        cost = min(row.step_ms for row in runs)
        base = cost if math.isnan(base) else base
        lines.append([name, interval(t_interval([row.final for row in runs])), times(cost, base)])
    head = ["precision", "final loss", "time of a step"]
    return titled("Precision of the computation", markdown(head, lines)) if lines else ""


def settings(found: Sequence[Row], chunk: str) -> str:
    """Returns the final loss of each group of a chunk whose groups differ in a setting."""
    titles = {"ema": "Average of the weights", "clipping": "Limit of the norm of the gradient"}
    lines = []
    for name in groups(found, chunk):
        losses = best_losses(found, chunk, name)
        lines.append([name, interval(t_interval(losses)) if losses[0] < math.inf else "diverged"])
    return titled(titles[chunk], markdown([chunk, "final loss"], lines)) if lines else ""
