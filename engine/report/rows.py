"""The rows of a run's `metrics.jsonl`: curves, the time of each step, results that are no numbers, and what happened.

A run that went back to an earlier step, by a restart or a rollback, has rows of steps that were repeated. The curves
have the last value of each step, and a mark says where the run went back.
"""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import RunError

ROW_KEYS = ("step", "attempt", "batch", "time")
TRAINING = "training/"  # precedes the name of a metric of training, as the name of an evaluation precedes its own
ATTEMPT, ROLLBACK = "attempt", "rollback"
_ROW = {"step": int, str: object}


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step.

    Attributes:
        kind: ATTEMPT, ROLLBACK, "checkpoint", "best" or "slow".
        step: when.
        text: a phrase.
    """

    kind: str
    step: int
    text: str


@dataclass
class Curve:
    """A number over the steps.

    Attributes:
        steps: increasing.
        values: the value at each of them; all are finite.
        missing: number of values that were not finite.
        first_missing: step of the first of them.
    """

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    missing: int = 0
    first_missing: int = 0

    def add(self, step: int, value: float) -> None:
        """Adds a value, and drops those of this and of later steps, which the run has repeated."""
        if self.steps and self.steps[-1] >= step:
            self.cut(step - 1)
        if math.isfinite(value):
            self.steps.append(step)
            self.values.append(value)
        else:
            self.first_missing = self.first_missing if self.missing else step
            self.missing += 1

    def cut(self, last: int) -> None:
        """Drops the values after step `last`."""
        while self.steps and self.steps[-1] > last:
            self.steps.pop()
            self.values.pop()


@dataclass
class Rows:
    """What the rows of a run say.

    Attributes:
        curves: "training/loss", "heldout/loss" -> curve.
        clock: seconds since the first row, by step.
        began: Unix time of the first row.
        marks: starts of attempts and rollbacks.
        results: name -> (step, JSON) of the latest result that is no number: a table, a curve, a histogram, an array.
        note: what could not be read, as a sentence; "" if nothing.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    clock: Curve = field(default_factory=Curve)
    began: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    results: dict[str, tuple[int, Any]] = field(default_factory=dict)
    note: str = ""


def read_rows(path: Path) -> Rows:
    """Returns what a `metrics.jsonl` says; nothing if it does not exist yet.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        lines = json_text.read_lines(path, _ROW)
    except FileNotFoundError:
        return Rows()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found, attempt, trained = Rows(note=lines.note(path)), 0, -1
    names: dict[tuple[str, bool], str] = {}
    for row in lines.values:
        step, of_training = row["step"], "batch" in row
        number = row.get("attempt")
        if isinstance(number, int) and number != attempt:
            if attempt:
                text = f"attempt {number} starts after step {step:,}" + _back(step, trained)
                found.marks.append(Mark(ATTEMPT, step, text))
                _cut(found, step)
            attempt, trained = number, step
        elif of_training and step <= trained:
            found.marks.append(Mark(ROLLBACK, step, f"rollback from step {trained:,}"))
        if of_training:
            trained = step
        if isinstance(time := row.get("time"), int | float) and math.isfinite(time):
            found.began = found.began or float(time)
            found.clock.add(step, float(time) - found.began)
        for name, value in row.items():
            if name not in ROW_KEYS:
                full = names.get((name, of_training))
                if full is None:
                    full = names[name, of_training] = name_of(name, of_training)
                _add(found, full, step, value)
    return found


def _back(step: int, trained: int) -> str:
    return f" (before, the run had reached step {trained:,})" if trained > step else ""


def _cut(found: Rows, last: int) -> None:
    for curve in (*found.curves.values(), found.clock):
        curve.cut(last)


def _add(found: Rows, name: str, step: int, value: Any) -> None:
    if type(value) is float and (curve := found.curves.get(name)) is not None:  # nearly all values of long runs
        curve.add(step, value)
        return
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        value = float(value)
    if isinstance(value, int | float):
        found.curves.setdefault(name, Curve()).add(step, float(value))
    elif isinstance(value, dict | list):
        found.results[name] = (step, value)


def name_of(name: str, of_training: bool) -> str:
    """Returns the name of a curve for a value of a row; an evaluation may have the name "training", too."""
    if of_training:
        return TRAINING + name
    return f"evaluation {name}" if name.startswith(TRAINING) else name
