"""The curves of runs, from their `metrics.jsonl`: which metrics there are, and their values by step.

Reads JSON lines alone, so it imports no JAX and works while a run trains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base import json_text
from engine.base.errors import ConfigError, RunError, did_you_mean
from engine.observe.tensorboard import MEASURED, ROW_KEYS

TRAINING = "training/"  # precedes the name of a metric of training, as the name of an evaluation precedes its own
PANELS = 4  # charts that are shown if no metric is named
_LAST = ("grad_norm", "learning_rate", "skipped")  # metrics of the engine; those of the Task come first
_ROW = {"step": int, str: object}  # of metrics.jsonl

type Curve = dict[int, float]
"""Step -> value."""


@dataclass(frozen=True)
class Panel:
    """A chart of metrics that share a scale."""

    title: str
    curves: Mapping[str, Curve]
    """Label -> curve."""

    @property
    def is_log(self) -> bool:
        """Whether the values need a logarithmic scale: they are positive and differ by a factor of 100 or more."""
        values = [value for curve in self.curves.values() for value in curve.values()]
        return min(values) > 0 and max(values) >= 100 * min(values)


def read_curves(path: Path) -> dict[str, Curve]:
    """Returns the curves of the numbers in a `metrics.jsonl`: "training/loss", "heldout/loss".

    After a resume the last value of a step counts. A line that a crash left incomplete is skipped. Metrics of an
    evaluation `training` are those of "evaluation training".

    Raises:
        RunError: the file is missing or cannot be read, or has no numbers.
    """
    try:
        rows = json_text.read_lines(path, _ROW).values
    except FileNotFoundError as error:
        below = [
            file.parent for pattern in ("*", "runs/*") for file in sorted(path.parent.glob(f"{pattern}/{path.name}"))
        ]
        advice = f"Runs below it: {', '.join(map(str, below[:5]))}." if below else "Give the directory of a run."
        raise RunError(f"{path.parent}: there is no {path.name}. {advice}") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in ROW_KEYS and is_number and math.isfinite(value):
                found.setdefault(_name(name, "batch" in row), {})[row["step"]] = float(value)
    if not found:
        raise RunError(f"{path}: has no numbers yet. Wait until the run has logged a row (log.every).")
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


def _name(name: str, of_training: bool) -> str:
    """Returns the name of a curve for a value of a row."""
    if of_training:
        return TRAINING + name
    return f"evaluation {name}" if name.startswith(TRAINING) else name


def choose_panels(runs: Mapping[str, Mapping[str, Curve]], metrics: Sequence[str]) -> list[Panel]:
    """Returns the charts of runs.

    A chart has the curves of one metric: of training, and of each evaluation that has it. Without `metrics`, the loss
    and the metrics of the Task are shown, at most PANELS.

    Args:
        runs: label of a run -> name of a metric -> curve.
        metrics: names such as "loss", or "val/loss" for that evaluation alone, or "training/loss".

    Raises:
        ConfigError: no run has a metric.
    """
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    bases = list(dict.fromkeys(map(_base, names)))
    if not metrics:
        own = [base for base in bases if base not in MEASURED and base not in _LAST]
        shown = [base for base in own if "/" not in base]  # not those of slices and classes
        metrics = sorted(shown or own or bases, key=lambda base: base != "loss")[:PANELS]
    panels = []
    for metric in metrics:
        chosen = [name for name in names if metric in (name, _base(name))]
        if not chosen:
            near = did_you_mean(metric, [*bases, *names])
            raise ConfigError(f"--metric = {metric}: no run has this metric.{near} Found: {', '.join(bases)}.")
        curves = {
            _label(run if len(runs) > 1 else "", name): found[name]
            for run, found in runs.items()
            for name in chosen
            if name in found
        }
        panels.append(Panel(metric, curves))
    return panels


def _base(name: str) -> str:
    """Returns the name of a metric without what precedes it: "accuracy" of "heldout/accuracy"."""
    return name.partition("/")[2] or name


def _label(run: str, name: str) -> str:
    return f"{run} {name.partition('/')[0]}".strip()
