"""What a list of runs shows of one run, read from its directory without its code.

The config is read as text, line by line, so a run of another version of the engine, or of code that no longer exists,
is listed like any other.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base.errors import ConvoyError
from engine.base.files import read_text
from engine.base.json_text import reason
from engine.checkpoint.policy import RESULTS, best_of, read_results
from engine.config.zoo import current_settings
from engine.run import status

DAMAGED = "damaged"
"""State of a run whose status cannot be read."""

STATUS, CONFIG = "status.json", "config.txt"
FILES = (STATUS, CONFIG, f"checkpoints/{RESULTS}")
"""The files of a run that its record is made of."""

SWEEP_HOOK = "hooks.sweep."
"""Settings that a sweep adds to its trials: they name files of the trial, and are no difference between two runs."""

_SETTINGS = re.compile(rb"\A# \d+ settings\n|^(task|data)\.target: ", re.MULTILINE)
_HEAD = re.compile(r"# (\d{1,9}) settings\n")
_BEGINNING = 1 << 16  # bytes that are read to see whether a file is a config

FIELDS = ("path", "state", "step", "total_steps", "attempt", "started", "updated", "problem", "best", "parent")
"""What `RunRecord.value` knows beside settings and metrics."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as its files were when the record was made.

    Attributes:
        path: the run directory, relative to the folder of the list.
        state: a state of `status.json`, or DAMAGED.
        step: completed updates.
        total_steps: updates of the whole run; None if not known.
        attempt: number of its latest start.
        started: start of this attempt, ISO time in UTC.
        updated: last change of the status, ISO time in UTC.
        problem: how the run ended if it failed, and what cannot be read; "" if nothing.
        best: step of the best checkpoint; None if the run selects none or was not evaluated yet.
        config: dotted name -> value of each setting.
        metrics: name -> value: of evaluations those of the best checkpoint if there is one, and else the latest.
    """

    path: str
    state: str
    step: int = 0
    total_steps: int | None = None
    attempt: int = 0
    started: str = ""
    updated: str = ""
    problem: str = ""
    best: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def parent(self) -> str:
        """The checkpoints whose weights this run started with; "" if none."""
        return ", ".join(str(value) for name, value in self.config.items() if _is_parent(name) and value)

    def value(self, name: str) -> Any:
        """Returns a metric, a setting, or one of FIELDS by its name; None if the run has none."""
        if name in self.metrics:
            return self.metrics[name]
        return self.config[name] if name in self.config else getattr(self, name) if name in FIELDS else None


def _is_parent(name: str) -> bool:
    return name == "init.checkpoint" or (name.startswith("init.sources.") and name.endswith(".checkpoint"))


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run directory, even a damaged one. Other programs write a `config.txt` too."""
    if (folder / STATUS).is_file():
        return True
    return (folder / CONFIG).is_file() and ((folder / "checkpoints").is_dir() or _has_settings(folder / CONFIG))


def _has_settings(file: Path) -> bool:
    """Returns whether a file begins with settings of a run, or with their number."""
    try:
        with file.open("rb") as opened:
            return _SETTINGS.search(opened.read(_BEGINNING)) is not None
    except OSError:
        return False


def read_record(folder: Path, path: str) -> RunRecord:
    """Returns the record of a run directory. It never fails: `problem` says what cannot be read.

    Args:
        folder: the run directory.
        path: the name of the run in the list.
    """
    problems: list[str] = []

    def read[T](reader: Callable[[], T], otherwise: T) -> T:
        try:
            return reader()
        except ConvoyError as error:
            problems.append(str(error))
        except (OSError, ValueError) as error:
            problems.append(f"{folder / CONFIG}: cannot be read ({reason(error)}).")
        return otherwise

    config = read(lambda: _settings(read_text(folder / CONFIG)), {})
    found = read(lambda: status.read(folder / STATUS), None)
    results = read(lambda: read_results(folder / "checkpoints"), {})
    if found is None:
        return RunRecord(path=path, state=DAMAGED, problem=" ".join(problems), config=config)
    selects, mode = str(config.get("checkpoint.best") or ""), str(config.get("checkpoint.best_mode", "auto"))
    best, _ = best_of(results, selects, mode) or (None, None)
    metrics = {**found.metrics, **results.get(best, {})} if best is not None else found.metrics
    return RunRecord(
        path=path,
        state=found.state,
        step=found.step,
        total_steps=found.total_steps,
        attempt=found.attempt,
        started=found.started,
        updated=found.updated,
        problem=" ".join(filter(None, (found.reason, *problems))),
        best=best,
        config=config,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def _settings(text: str) -> dict[str, Any]:
    """Returns dotted name -> value of each line `name: value` of a config.

    Raises ValueError for a text without settings, or with another number of them than its first line states: what is
    missing must not look like a difference between two runs.

    Numbers, None and quoted texts are values of Python; everything else is text. Code has today's names, also where an
    earlier version of the engine stored others, so that the same code is no difference between two runs.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = [line.partition(": ") for line in lines]
    found = {name: value for name, colon, value in parts if colon}
    head = _HEAD.match(text)
    if not found or (head and int(head[1]) != len(lines)):
        stated = f", but its first line states {head[1]}" if head else ""
        raise ValueError(f"it has {len(lines) if found else 'no'} settings{stated}")
    settings = current_settings(found)
    return {name: plain(value) for name, value in settings.items()}


def plain(text: str) -> Any:
    """Returns a number, a truth value, None or a text, of what is written in a config or by a user."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | str | None) else text
