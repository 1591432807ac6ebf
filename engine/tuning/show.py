"""The results of tuning as text for a terminal, as files in a folder, and as JSON."""

import csv
import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base import formatting
from engine.base.errors import ConfigError
from engine.plot.curves import Panel
from engine.plot.terminal import chart
from engine.tuning.batch_sizes import BatchSizes
from engine.tuning.learning_rates import LearningRates

FILE = "curve"
EASY = 4
"""A batch this many times smaller than the noise scale costs few more examples; one as many times larger saves few
more steps."""


def learning_rates_text(found: LearningRates, width: int, *, color: bool, ascii_only: bool) -> str:
    """Returns the chart, the table and the suggestion of `convoy tune lr`."""
    curves = {f"seed {curve.seed}": dict(enumerate(curve.smoothed)) for curve in found.curves if curve.smoothed}
    parts = []
    if curves:
        longest = max((curve for curve in found.curves if curve.smoothed), key=lambda curve: len(curve.smoothed))
        ends = (
            f"learning rate {longest.learning_rates[0]:.2g}",
            f"{longest.learning_rates[len(longest.smoothed) - 1]:.2g}",
        )
        parts.append(chart(Panel("loss, running median", curves), width, color=color, ascii_only=ascii_only, ends=ends))
    rows: list[Sequence[str]] = [("seed", "falls fastest", "lowest loss", "diverged", "suggestion")]
    for curve in found.curves:
        values = (curve.steepest, curve.minimum, curve.diverged, curve.suggestion)
        rows.append((str(curve.seed), *("-" if value is None else f"{value:.2g}" for value in values)))
    parts.append("\n".join(formatting.aligned(rows, right=True)))
    if found.suggestion is not None:
        parts.append(
            f"suggestion: {found.suggestion:.2g}, a tenth of the learning rate at the lowest loss. {found.certainty}\n"
            f"{found.comparison}\n\n{found.flag}"
        )
    return "\n\n".join(parts)


def batch_sizes_text(found: BatchSizes) -> str:
    """Returns the tables and the suggestion of `convoy tune batch`."""
    rows = [("step", "loss", "|G|^2", "tr(Sigma)", "noise scale", "95 % interval")]
    for point in found.curve:
        scale = "cannot tell" if point.noise_scale is None else f"{point.noise_scale:,.0f}"
        low, high = point.interval
        above = f"{high:,.0f}" if math.isfinite(high) else "unknown"
        values = (formatting.number(point.loss), f"{point.squared_gradient:.2e}", f"{point.trace:.2e}")
        rows.append((f"{point.step:,}", *values, scale, f"{low:,.0f} to {above}"))
    parts = ["\n".join(formatting.aligned(rows, right=True))]
    if (scale := found.suggestion) is not None:
        table = [("batch size", "steps", "examples", "")]
        for size, steps, examples in found.trade_offs:
            table.append((f"{size:,}", f"{steps:.2f} x", f"{examples:.2f} x", "config" * (size == found.configured)))
        parts.append("\n".join(formatting.aligned(table, right=True)))
        parts.append(
            f"suggestion: about {scale:,.0f} examples, where a run takes twice the fewest steps and twice the fewest "
            f"examples. {found.certainty}\nUp to {max(1, scale / EASY):,.0f} examples, a larger batch costs at most "
            f"25 % more examples than the fewest.\nAbove {EASY * scale:,.0f}, it saves at most 20 % of the steps."
        )
    parts.append("The noise scale usually grows during training: measure later steps too, with --steps or --run.")
    return "\n\n".join(parts)


def to_json(found: LearningRates | BatchSizes) -> dict[str, Any]:
    """Returns a result as plain data; null stands for what is not finite."""
    texts = {"certainty": found.certainty}
    if isinstance(found, BatchSizes):
        texts |= {"trade_offs": [list(row) for row in found.trade_offs]}
    else:
        texts |= {"comparison": found.comparison, "flag": found.flag}
    return _plain(dataclasses.asdict(found) | texts)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def write_files(found: LearningRates | BatchSizes, folder: Path) -> list[str]:
    """Writes `curve.csv`, and `curve.png` if matplotlib is installed; returns their names.

    Raises:
        ConfigError: the folder cannot be written.
    """
    names = [f"{FILE}.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / names[0], "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(_learning_rate_rows(found) if isinstance(found, LearningRates) else _batch_rows(found))
        if importlib.util.find_spec("matplotlib") is not None:
            names.append(f"{FILE}.png")
            _draw(found, folder / names[1])
    except OSError as error:
        raise ConfigError(f"--out = {folder}: cannot be written ({error.strerror or error}).") from error
    return names


def _learning_rate_rows(found: LearningRates) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [("seed", "step", "learning_rate", "loss", "smoothed")]
    for curve in found.curves:
        smoothed = [*curve.smoothed, *[""] * (len(curve.losses) - len(curve.smoothed))]
        values = zip(curve.learning_rates, curve.losses, smoothed, strict=True)
        rows += [(curve.seed, step, *value) for step, value in enumerate(values, 1)]
    return rows


def _batch_rows(found: BatchSizes) -> list[Sequence[object]]:
    names = ("step", "loss", "squared_gradient", "trace", "noise_scale")
    rows: list[Sequence[object]] = [(*names, "low", "high")]
    return [*rows, *((*(getattr(point, name) for name in names), *point.interval) for point in found.curve)]


def _draw(found: LearningRates | BatchSizes, path: Path) -> None:
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(5.5, 3.4), layout="constrained", dpi=150)
    axes = figure.subplots()
    if isinstance(found, LearningRates):
        for curve in found.curves:
            count = len(curve.smoothed)
            [line] = axes.plot(curve.learning_rates[:count], curve.smoothed, label=f"seed {curve.seed}")
            axes.plot(curve.learning_rates[:count], curve.losses[:count], ".", ms=2, alpha=0.4, color=line.get_color())
        if found.suggestion is not None:
            axes.axvline(found.suggestion, color="#2a9d3a", linestyle="--", label=f"suggestion {found.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    else:
        known = [point for point in found.curve if point.noise_scale is not None]
        scales = [point.noise_scale or math.nan for point in known]
        errors = [
            [scale - point.interval[0] for scale, point in zip(scales, known, strict=True)],
            [point.interval[1] - scale for scale, point in zip(scales, known, strict=True)],
        ]
        axes.errorbar([point.step for point in known], scales, yerr=errors, marker="o", capsize=3, label="noise scale")
        axes.axhline(found.configured, color="#7d7d7d", linestyle="--", label=f"config {found.configured}")
        axes.set(xlabel="step", ylabel="examples")
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
