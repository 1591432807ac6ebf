"""Tables from rows, as Markdown. `measures.py` has the formulas, `further_reports.py` the tables of further chunks."""

import math
from collections.abc import Iterable, Sequence

from benchmarks.optimizers import measures
from benchmarks.optimizers.further_reports import further_tables
from benchmarks.optimizers.measures import BASELINE, STEPS, TIME
from benchmarks.optimizers.optimizers import FULL, OPTIMIZERS
from benchmarks.optimizers.rows import Row
from benchmarks.optimizers.tables import NONE, interval, markdown, number, times, titled
from benchmarks.optimizers.tasks import TASKS, TINY, task_of
from engine.experiments.statistics import t_interval


def text(found: Sequence[Row]) -> str:
    """Returns all tables that the rows allow."""
    tasks = [name for name in (*TASKS, *TINY) if measures.compared(found, name)]
    parts = [baselines(found, tasks), summary(found, tasks)] if tasks else []
    parts += [comparison(found, task) for task in tasks]
    parts += [
        profiles(found, tasks, unit)
        for unit in (STEPS, TIME)
        if any(BASELINE in measures.compared(found, t) for t in tasks)
    ]
    parts += further_tables(found)
    return "\n\n".join(filter(None, parts)) or "No rows yet. The command plan lists the chunks."


def baselines(found: Sequence[Row], tasks: Iterable[str]) -> str:
    """Returns what the tuned baseline reaches on each shortened task, and the documented metric of the whole one."""
    lines = []
    for name in tasks:
        task, runs = task_of(name), measures.final_rows(found, name, BASELINE)
        if not runs:
            continue
        metric = f", {task.metric} {interval(t_interval([row.metric[-1] for row in runs]))}" if task.metric else ""
        reached = f"{task.loss} {interval(measures.final_loss(found, name, BASELINE))}{metric}"
        seconds = max(row.cpu_s for row in runs)
        lines.append([task.title, f"{runs[0].run.steps:,}", f"{seconds:.0f}", reached, task.full])
    head = ["task", "steps", "CPU s", f"tuned {OPTIMIZERS[BASELINE].title} reaches", "the whole task reaches"]
    return titled("What the shortened tasks reach", markdown(head, lines)) if lines else ""


def summary(found: Sequence[Row], tasks: Sequence[str]) -> str:
    """Returns steps and time to the target on every task, as shares of those of the baseline."""
    names = [name for name in OPTIMIZERS if any(name in measures.compared(found, task) for task in tasks)]
    lines = []
    for name in names:
        cells = []
        for task in tasks:
            shares = [
                times(measures.to_target(found, task, name, unit), measures.to_target(found, task, BASELINE, unit))
                for unit in (STEPS, TIME)
            ]
            tried = name in measures.compared(found, task)
            cells.append("" if not tried else NONE if shares[0] == NONE else f"{shares[0]}, {shares[1]}")
        lines.append([OPTIMIZERS[name].title, *cells])
    title, head = OPTIMIZERS[BASELINE].title, ["optimizer", *(task_of(task).title for task in tasks)]
    note = f"Steps, and CPU time, over those of tuned {title}; a dash: most seeds do not reach the target."
    return titled("Steps and time to the target", f"{note}\n\n{markdown(head, lines)}")


def comparison(found: Sequence[Row], task: str) -> str:
    """Returns the table of the optimizers on a task, the smallest final loss first."""
    base_steps = measures.to_target(found, task, BASELINE)
    base_time = measures.to_target(found, task, BASELINE, TIME)
    base_ms = measures.step_ms(found, task, BASELINE)
    names = sorted(measures.compared(found, task), key=lambda name: measures.final_loss(found, task, name).estimate)
    lines = []
    for name in names:
        runs, tuned = measures.final_rows(found, task, name), measures.tuning_rows(found, task, name)
        rates, losses = [float(row.run.settings["learning_rate"]) for row in tuned], [row.final for row in tuned]
        lines.append(
            [
                OPTIMIZERS[name].title,
                interval(measures.final_loss(found, task, name)),
                interval(measures.difference(found, task, name)) if name != BASELINE else "",
                *([interval(t_interval([row.metric[-1] for row in runs]))] if task_of(task).metric else []),
                times(measures.to_target(found, task, name), base_steps),
                times(measures.to_target(found, task, name, TIME), base_time),
                times(measures.step_ms(found, task, name), base_ms),
                f"{runs[0].state_bytes / runs[0].parameter_bytes:.2f}",
                times(measures.near_best(rates, losses), 1.0),
                f"{sum(row.diverged for row in tuned)} of {len(tuned)}",
                point(runs[0], rates),
            ]
        )
    spec = task_of(task)
    head = [
        *("optimizer", f"{spec.loss}, final", f"less {OPTIMIZERS[BASELINE].title}", *filter(None, [spec.metric])),
        *("steps to target", "time to target"),
        *("time of a step", "state / parameters", "rates near the best", "diverged", "best point"),
    ]
    goal = measures.target(found, task)
    title = OPTIMIZERS[BASELINE].title
    note = (
        f"Target: {spec.loss} {number(goal)}, which {title} reaches at {measures.TARGET_AT:.0%} of its steps. Steps "
        f"and times are shares of those of {title}; a dash: most seeds do not reach it. Less {title}: the mean "
        f"difference of runs with equal seeds; all intervals are of 95 %. Rates near the best: largest "
        f"over smallest learning rate with a loss at most {measures.NEAR:.0%} above the smallest one."
    )
    return titled(spec.title, f"{note}\n\n{markdown(head, lines)}")


def point(best: Row, rates: Sequence[float]) -> str:
    """Returns the settings of the best run; says so if no learning rate beyond its own was tried."""
    ends = {min(rates): " (smallest tried)", max(rates): " (largest tried)"}
    settings = best.run.settings
    rate = f"learning_rate {number(settings['learning_rate'])}{ends.get(float(settings['learning_rate']), '')}"
    return ", ".join([rate, *(f"{key} {number(value)}" for key, value in settings.items() if key != "learning_rate")])


def profiles(found: Sequence[Row], tasks: Sequence[str], unit: str) -> str:
    """Returns the performance profiles of the optimizers that were compared on all tasks, and their areas."""
    of_tasks = full_ratios(found, tasks, unit)
    limits = (1.0, 1.1, 1.25, 1.5, 2.0, measures.LARGEST_RATIO)
    lines = []
    for name in sorted(of_tasks, key=lambda name: -measures.area(of_tasks[name])):
        shares = [f"{share:.0%}" for share in measures.profile(of_tasks[name], limits)]
        lines.append([OPTIMIZERS[name].title, f"{measures.area(of_tasks[name]):.3f}", *shares])
    head = ["optimizer", "area", *(f"within {limit:g}" for limit in limits)]
    count = len(tasks)
    note = f"Share of the {count} tasks whose {unit} to the target is within a factor of the smallest."
    return titled(f"Performance profiles, {unit} to the target", f"{note}\n\n{markdown(head, lines)}") if lines else ""


def full_ratios(found: Sequence[Row], tasks: Sequence[str], unit: str) -> dict[str, list[float]]:
    """Returns optimizer -> cost over the smallest cost for each task, of the optimizers compared on all tasks."""
    costs = {}
    for task in tasks:
        names = [name for name in FULL if name in measures.compared(found, task)]
        each = {name: measures.to_target(found, task, name, unit) for name in names}
        if any(map(math.isfinite, each.values())):
            costs[task] = each
    everywhere = [name for name in FULL if costs and all(name in each for each in costs.values())]
    return measures.ratios({task: {name: each[name] for name in everywhere} for task, each in costs.items()})
