"""Figures from rows, drawn by matplotlib with the look of the pictures of the pages."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.optimizers import further, measures, rows, widths
from benchmarks.optimizers.further_reports import best_losses, groups, schedules_of, steps_by_batch
from benchmarks.optimizers.measures import STEPS, TIME
from benchmarks.optimizers.optimizers import FULL, OPTIMIZERS
from benchmarks.optimizers.problems import PROBLEMS
from benchmarks.optimizers.reports import full_ratios
from benchmarks.optimizers.rows import Row
from benchmarks.optimizers.tasks import TASKS, TINY, task_of
from engine.base.errors import ConfigError
from engine.base.extras import install_command

LOOK = Path(__file__).parents[2] / "docs" / "images" / "matplotlibrc"
WIDTH, HEIGHT, ALONE = 3.2, 2.6, 5.6
"""Inches of a panel, and the width of a figure with one panel and its legend."""
_COLORS = {name: f"C{place}" for place, name in enumerate(OPTIMIZERS)}


def draw(found: Sequence[Row], folder: Path) -> list[Path]:
    """Draws the figures that the rows allow; returns their paths. Raises ConfigError without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in FIGURES.items():
        with _look():
            drawn = figure(found)
            if drawn is None:
                continue
            paths.append(folder / f"optimizers-{name}.png")
            drawn.savefig(paths[-1], metadata={"Software": None})
    return paths


@contextlib.contextmanager
def _look() -> Iterator[None]:
    """The look of the pictures; closes the figures."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(f"the figures need matplotlib: {install_command('plot')}.") from error
    matplotlib.use("Agg")
    with matplotlib.rc_context(fname=LOOK if LOOK.exists() else None):
        try:
            yield
        finally:
            pyplot.close("all")


def _panels(titles: Sequence[str], x: str, y: str) -> tuple[Any, Sequence[Any]]:
    """Returns a figure with a row of panels, and the panels."""
    from matplotlib import pyplot

    width = ALONE if len(titles) == 1 else WIDTH * len(titles)
    figure, axes = pyplot.subplots(1, len(titles), figsize=(width, HEIGHT), squeeze=False, layout="constrained")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
        panel.set_xlabel(x)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(y)
    return figure, axes[0]


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """Puts one legend with the names of all panels to the right."""
    named = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside right upper", frameon=False, fontsize="small")


def _tasks(found: Sequence[Row]) -> list[str]:
    return [name for name in (*TASKS, *TINY) if measures.compared(found, name)]


def curves(found: Sequence[Row]) -> Any:
    """Loss over steps of the tuned points: the mean over seeds, and the range."""
    tasks = _tasks(found)
    if not tasks:
        return None
    figure, panels = _panels([task_of(name).title for name in tasks], "step", "validation loss")
    for panel, task in zip(panels, tasks, strict=True):
        shown = []
        for name in (name for name in FULL if name in measures.compared(found, task)):
            runs = [row for row in measures.final_rows(found, task, name) if not row.diverged]
            if not runs:
                continue
            losses = np.array([row.loss for row in runs])
            shown.append(losses.mean(axis=0))
            panel.plot(runs[0].at, losses.mean(axis=0), color=_COLORS[name], label=OPTIMIZERS[name].title, lw=1.2)
            panel.fill_between(runs[0].at, losses.min(axis=0), losses.max(axis=0), color=_COLORS[name], alpha=0.2, lw=0)
        _zoom(panel, shown)
    _legend(figure, panels)
    return figure


def _zoom(panel: Any, curves_: Sequence[np.ndarray]) -> None:
    """Shows losses from the smallest up to the median loss of the first quarter."""
    if curves_:
        low = min(float(curve.min()) for curve in curves_)
        high = float(np.median([curve[len(curve) // 8] for curve in curves_]))
        panel.set_ylim(low - 0.03 * (high - low), high)


def sensitivity(found: Sequence[Row]) -> Any:
    """Final loss of the tuning runs over the learning rate."""
    tasks = _tasks(found)
    if not tasks:
        return None
    figure, panels = _panels([task_of(name).title for name in tasks], "learning rate", "final validation loss")
    for panel, task in zip(panels, tasks, strict=True):
        losses: list[float] = []
        for name in (name for name in FULL if name in measures.compared(found, task)):
            tuned = [row for row in measures.tuning_rows(found, task, name) if not row.diverged]
            losses += [row.final for row in tuned]
            rates = [float(row.run.settings["learning_rate"]) for row in tuned]
            panel.plot(rates, [row.final for row in tuned], "o-", ms=2.5, lw=1, color=_COLORS[name],
                       label=OPTIMIZERS[name].title)  # fmt: skip
        panel.set_xscale("log")
        if losses:
            low, high = min(losses), float(np.quantile(losses, 0.85))
            panel.set_ylim(low - 0.05 * (high - low), high)
    _legend(figure, panels)
    return figure


def profiles(found: Sequence[Row]) -> Any:
    """Performance profiles, in steps and in time."""
    tasks = _tasks(found)
    of_units = {unit: full_ratios(found, tasks, unit) for unit in (STEPS, TIME)}
    if not all(of_units.values()):
        return None
    figure, panels = _panels([f"{unit} to the target" for unit in of_units], "factor of the best", "share of tasks")
    at = np.linspace(1, measures.LARGEST_RATIO, 301)
    for panel, of_tasks in zip(panels, of_units.values(), strict=True):
        for place, (name, values) in enumerate(of_tasks.items()):
            shares = np.array(measures.profile(values, at.tolist())) + 0.006 * place  # equal profiles stay visible
            label = OPTIMIZERS[name].title
            panel.plot(at, shares, color=_COLORS[name], label=label, drawstyle="steps-post", lw=1.2)
        panel.set_ylim(0, 1.06)
    _legend(figure, panels)
    return figure


def costs(found: Sequence[Row]) -> Any:
    """Time of a step and bytes of the state of each optimizer, over those of the baseline and of the parameters."""
    tasks = _tasks(found)
    names = [name for name in OPTIMIZERS if any(name in measures.compared(found, task) for task in tasks)]
    if not names:
        return None
    figure, panels = _panels(["time of a step", "optimizer state"], "", "")
    for place, task in enumerate(tasks):
        base = measures.step_ms(found, task, measures.BASELINE)
        here = [name for name in names if name in measures.compared(found, task)]
        at = [names.index(name) + 0.15 * (place - len(tasks) / 2) for name in here]
        runs = [measures.final_rows(found, task, name)[0] for name in here]
        panels[0].plot([measures.step_ms(found, task, name) / base for name in here], at, "o", ms=4, label=task)
        panels[1].plot([row.state_bytes / row.parameter_bytes for row in runs], at, "o", ms=4, label=task)
    for panel, label in zip(panels, ("times AdamW", "times the parameters"), strict=True):
        panel.set_xlabel(label)
        panel.set_yticks(range(len(names)), [OPTIMIZERS[name].title for name in names] if panel is panels[0] else [])
        panel.invert_yaxis()
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    _legend(figure, panels)
    return figure


def problems(found: Sequence[Row]) -> Any:
    """Loss over steps of the best point of each optimizer on the problems."""
    shown = [name for name in PROBLEMS if groups(found, name)]
    if not shown:
        return None
    figure, panels = _panels([PROBLEMS[name]().title for name in shown], "step", "distance to the minimum")
    for panel, name in zip(panels, shown, strict=True):
        for place, optimizer in enumerate(OPTIMIZERS):
            if (best := rows.best(found, name, optimizer)) is not None and not best.diverged:
                style = "-" if optimizer in FULL else "--"
                panel.plot(best.at, best.loss, style, color=f"C{place}", label=OPTIMIZERS[optimizer].title, lw=1)
        panel.set_yscale("log")
    _legend(figure, panels)
    return figure


def schedules(found: Sequence[Row]) -> Any:
    """Final loss over the budget of each schedule."""
    found_schedules = schedules_of(found)
    if not found_schedules:
        return None
    figure, [panel] = _panels(["schedules, AdamW on language"], "steps of the run", "final validation loss")
    for name, budgets in found_schedules.items():
        panel.errorbar(list(budgets), [np.mean(losses) for losses in budgets.values()],
                       [np.std(losses) for losses in budgets.values()], fmt="o-", ms=3, lw=1, label=name)  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xticks(further.BUDGETS, [str(budget) for budget in further.BUDGETS])
    _legend(figure, [panel])
    return figure


def batch_size(found: Sequence[Row]) -> Any:
    """Steps to a loss over the batch size, and the fit."""
    goal, steps = steps_by_batch(found)
    if len(steps) < 2:
        return None
    least, critical = measures.critical_batch(list(steps), list(steps.values()))
    figure, [panel] = _panels([f"steps to a loss of {goal:.3f}"], "batch size", "steps")
    panel.plot(list(steps), list(steps.values()), "o", ms=4, label="measured, best learning rate")
    at = np.geomspace(min(steps), max(steps), 100)
    panel.plot(at, least * (1 + critical / at), lw=1, label=f"{least:.0f} (1 + {critical:.0f} / batch size)")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    _legend(figure, [panel])
    return figure


def rates_by_width(found: Sequence[Row]) -> Any:
    """Final loss over the learning rate for each width, without and with muP; a mark at the best rate."""
    shown = widths.losses(found)
    if not shown:
        return None
    figure, panels = _panels(list(widths.KINDS.values()), "learning rate", "validation loss")
    limits = [min(loss.values()) for loss in shown.values()]
    for panel, kind in zip(panels, widths.KINDS.values(), strict=True):
        for place, width in enumerate(widths.WIDTHS):
            if loss := shown.get((kind, width)):
                best = min(loss, key=loss.__getitem__)
                panel.plot(list(loss), list(loss.values()), lw=1.2, color=f"C{place}", label=f"width {width}")
                panel.plot(best, loss[best], "o", ms=4, color=f"C{place}")
        panel.set_xscale("log", base=10)
        panel.set_ylim(min(limits) - 0.05, max(limits) + 0.6)
    _legend(figure, panels)
    return figure


def _of_groups(chunk: str, title: str) -> Callable[[Sequence[Row]], Any]:
    """Returns a function that draws the loss over steps of the groups of a chunk."""

    def figure_of(found: Sequence[Row]) -> Any:
        shown, averages = groups(found, chunk), []
        if not shown:
            return None
        figure, [panel] = _panels([title], "step", "validation loss")
        for place, name in enumerate(shown):
            runs = rows.finals(found, chunk, name) or [
                row for row in found if (row.run.chunk, row.run.group) == (chunk, name)
            ]
            averages.append(np.mean([row.loss for row in runs if not row.diverged], axis=0))
            style = ("-", "--", ":")[place % 3]  # equal curves stay visible
            panel.plot(runs[0].at, averages[-1], style, label=name, lw=1.2)
        _zoom(panel, averages)
        _legend(figure, [panel])
        return figure

    return figure_of


def _of_values(chunk: str, title: str, x: str) -> Callable[[Sequence[Row]], Any]:
    """Returns a function that draws the final loss of groups "series value" of a chunk over the values."""

    def figure_of(found: Sequence[Row]) -> Any:
        series: dict[str, dict[str, float]] = {}
        for group in groups(found, chunk):
            name, _, value = group.rpartition(" ")
            series.setdefault(name, {})[value] = min(best_losses(found, chunk, group))
        if not series:
            return None
        figure, [panel] = _panels([title], x, "final validation loss")
        for name, values in series.items():
            finite = [loss if math.isfinite(loss) else math.nan for loss in values.values()]
            shown = [value if float(value) else "none" for value in values]
            panel.plot(shown, finite, "o-", ms=3, lw=1, label=name.partition(",")[0])
        _legend(figure, [panel])
        return figure

    return figure_of


FIGURES: dict[str, Callable[[Sequence[Row]], Any]] = {
    "curves": curves,
    "sensitivity": sensitivity,
    "profiles": profiles,
    "costs": costs,
    "problems": problems,
    "schedules": schedules,
    "batch-size": batch_size,
    "accumulation": _of_groups("accumulation", "one batch of 16 in microbatches"),
    "precision": _of_groups("precision", "precision of the computation"),
    "ema": _of_values("ema", "average of the weights", "decay of the average"),
    "clipping": _of_values("clipping", "limit of the norm of the gradient", "clip_norm"),
    "widths": rates_by_width,
}
"""Name -> function that draws a figure, or returns None if the rows do not allow it."""
