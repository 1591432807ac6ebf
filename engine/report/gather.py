"""Gathers what a report shows of a run: plain values for JSON, without HTML."""

import contextlib
import math
import os
import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.base import formatting
from engine.base.errors import RunError
from engine.base.files import read_text
from engine.base.json_text import reason
from engine.checkpoint.bucket_copy import readable
from engine.experiments.record import RunRecord, read_record
from engine.report import cost, results, thinning
from engine.report.event_images import read_event_images
from engine.report.images import Budget, read_pictures
from engine.report.panels import WAIT
from engine.report.rows import TRAINING, Curve, Mark, Rows, read_rows
from engine.report.settings import parent_of, read_texts, settings_of
from engine.run import code, status
from engine.run.directory import RunDirectory

IMAGE_BYTES = 3 << 20  # of all runs of a report, before the base64 encoding adds a third
WARNINGS = 30  # latest warnings of the log
_MOST_LOG = 64 << 20  # bytes
_WARNING = re.compile(r"^(?P<time>\S+Z) (?P<text>warning: .*)$", re.IGNORECASE | re.MULTILINE)
_STEP = re.compile(r"\d{1,18}")
_MOST_MARKS = 300  # of each kind


class Gathered:
    """A run that was read.

    Args:
        path: its directory, as the user named it.

    Raises:
        RunError: the directory is no run, or a file of it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.directory = RunDirectory(readable(path))
        self.record = read_record(self.directory.path, str(path))
        if not self.record.config:
            self.directory.read_config_text()  # says what is wrong
            raise RunError(f"{path}: no run that can be read. {self.record.problem}".rstrip())
        self.texts = read_texts(self.directory.config)
        self.rows = read_rows(self.directory.metrics)
        _add_waits(self.rows)

    def data(self, name: str, points: int, budget: Budget) -> dict[str, Any]:
        """Returns the data of the run.

        Args:
            name: the name of the run in the report.
            points: most points of a curve.
            budget: what its images may take.
        """
        parent = parent_of(self.record)
        time, slow, note = cost.goodput(self.directory)
        pictures = read_pictures(self.directory.figures, budget)
        events = read_event_images(self.directory.tensorboard, budget, self.rows.results, budget.seen)
        prefixes = results.slice_prefixes(self.rows, self.texts)
        return {
            "name": name,
            "path": self.record.path,
            **_state(self.record, self.directory),
            "tiles": _tiles(self.record, self.rows, time),
            "curves": {
                curve: _thinned(values, points)
                for curve, values in self.rows.curves.items()
                if _is_shown(curve, values) and not curve.startswith(prefixes)
            },
            "clock": _thinned(self.rows.clock, points),
            "marks": _marks([*self.rows.marks, *slow, *_checkpoints(self.record, self.directory)]),
            "goodput": time,
            "plan": cost.plan(self.directory.plan),
            "settings": settings_of(self.texts, parent),
            "parent": None if parent is None else {"path": parent.path, "known": parent.settings is not None},
            "environment": _environment(self.directory),
            "mesh": cost.mesh(self.directory.plan, self.texts),
            "slices": results.slices(self.rows, self.texts),
            "results": results.shown(self.rows),
            "worst": _worst(self.rows, pictures),
            "images": [*pictures.others, *events],
            "warnings": _warnings(self, note),
        }


def _is_shown(name: str, curve: Curve) -> bool:
    """Returns whether a curve says anything: skipped steps do only if there are some."""
    return bool(curve.values) and name != "compile_s" and (name != "training/skipped" or any(curve.values))


def _add_waits(rows: Rows) -> None:
    """Adds the seconds of a step in which the loop waited for data."""
    step, share = (rows.curves.get(f"training/{name}") for name in ("step_time_s", "data_wait"))
    if step is not None and share is not None and step.steps == share.steps:
        seconds = [a * b for a, b in zip(step.values, share.values, strict=True)]
        rows.curves[WAIT] = Curve(step.steps, array("d", seconds))


def names_of(paths: Sequence[str]) -> list[str]:
    """Returns a short name for each path: the fewest last parts that tell all of them apart."""
    parts = [os.path.abspath(path).rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{each[-1]} ({number})" for number, each in enumerate(parts, start=1)]


def _state(record: RunRecord, directory: RunDirectory) -> dict[str, Any]:
    selects = str(record.config.get("checkpoint.best") or "")
    try:
        slowest = status.read(directory.status).slowest
    except RunError:
        slowest = ""
    return {
        "state": record.state, "step": record.step, "total": record.total_steps, "attempt": record.attempt,
        "started": record.started, "updated": record.updated, "problem": record.problem, "slowest": slowest,
        "best": record.best, "select": selects,
        "metrics": {name: rounded(x) for name, x in record.metrics.items() if name.count("/") < 2 or name == selects},
    }  # fmt: skip


def _tiles(record: RunRecord, rows: Rows, time: dict[str, Any]) -> list[list[str]]:
    """Returns label, value and note of each number at the top of the report."""
    tiles = []
    selects = str(record.config.get("checkpoint.best") or "")
    if selects in record.metrics and record.best is not None:
        tiles.append([selects, formatting.number(record.metrics[selects]), f"best, at step {record.best:,}"])
    loss = rows.curves.get("training/loss")
    if loss is not None and loss.values:
        tiles.append(["training loss", formatting.number(loss.values[-1]), f"at step {loss.steps[-1]:,}"])
    total = f"of {record.total_steps:,}" if record.total_steps else ""
    tiles.append(["steps", f"{record.step:,}", total])
    if time["wall"]:
        attempts = f"{record.attempt} attempt{'s' * (record.attempt != 1)}"
        tiles.append(["wall time", formatting.duration(time["wall"]), attempts])
        tiles.append(["goodput", f"{time['share']:.1%}", f"{formatting.duration(time['total'][3])} in steps"])
    for name, label, show in (
        ("examples_per_s", "examples/s", lambda value: formatting.number(round(value))),
        ("step_time_s", "step time", formatting.seconds_text),
        ("mfu", "MFU", lambda value: f"{value:.1%}"),
    ):
        curve = rows.curves.get(f"training/{name}")
        if curve is not None and curve.values:
            tiles.append([label, show(float(np.median(curve.values))), "median"])
    if memory := cost.highest_memory(rows):
        tiles.append(["memory", f"{memory[1]:.2f} GiB", memory[0]])
    return tiles


def _thinned(curve: Curve, points: int) -> dict[str, Any]:
    """Returns a curve with few points: the first step, then differences; and values of five digits."""
    steps, values = np.array(curve.steps), np.array(curve.values)
    at = thinning.chosen(steps, values, points)
    return {"s": np.diff(steps[at], prepend=0).tolist(), "v": [rounded(value) for value in values[at].tolist()]}


def rounded(value: float) -> float | int | None:
    """Returns a number with five digits; None if it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _checkpoints(record: RunRecord, directory: RunDirectory) -> list[Mark]:
    try:
        names = [path.name for path in directory.checkpoints.iterdir() if _STEP.fullmatch(path.name)]
    except OSError:
        names = []
    marks = [Mark("checkpoint", step, f"checkpoint of step {step:,}") for step in sorted(map(int, names))]
    if record.best is not None:
        marks.append(Mark("best", record.best, f"best {record.config.get('checkpoint.best')}, step {record.best:,}"))
    return marks


def _marks(marks: Sequence[Mark]) -> list[list[Any]]:
    found, counts = [], {}
    for mark in marks:
        counts[mark.kind] = counts.get(mark.kind, 0) + 1
        if counts[mark.kind] <= _MOST_MARKS:
            found.append([mark.kind, mark.step, mark.text])
    return found


def _environment(directory: RunDirectory) -> list[list[str]]:
    found = code.read(directory.code)
    rows = [["code", ", ".join(found.folders) or "installed packages"]] if found.time else []
    if found.commit:
        notes = {True: ", with uncommitted changes", False: "", None: ", uncommitted changes are not known"}
        rows.append(["commit", found.commit[:12] + notes[found.dirty]])
    with contextlib.suppress(RunError):
        rows.append(["host of process 0", status.read(directory.status).host])
    named = {name: text for name, text in found.environment.items() if name != "mesh"}
    return [*rows, *([name, text] for name, text in (*named.items(), *found.packages.items()))]


def _worst(rows: Rows, pictures: Any) -> list[dict[str, Any]]:
    """Returns the worst examples of each evaluation with their figures, and figures of other examples."""
    tables = results.worst_examples(rows)
    found = []
    for evaluation in dict.fromkeys([*tables, *pictures.figures]):
        shown = tables.get(evaluation)
        figures = pictures.figures.get(evaluation, {})
        found.append(
            {
                "evaluation": evaluation,
                "step": shown["step"] if shown else pictures.steps[evaluation],
                "table": shown,
                "figures": [[example, address] for example, address in figures.items()],
                "figureStep": pictures.steps.get(evaluation),
            }
        )
    return found


def _warnings(run: Gathered, note: str) -> list[list[str]]:
    """Returns time and text of what went wrong or may have: the end of the run, its log, and files that are damaged."""
    damaged = code.read(run.directory.code).problem
    found = [["", text] for text in (run.record.problem, damaged, run.rows.note, note) if text]
    found += [["", text] for text in _not_finite(run.rows, results.slice_prefixes(run.rows, run.texts))]
    try:
        log = read_text(run.directory.log, _MOST_LOG, errors="replace")
    except FileNotFoundError:
        log = ""
    except OSError as error:
        return [*found, ["", f"{run.directory.log}: cannot be read ({reason(error)})."]]
    warnings = [[match["time"], match["text"].partition(": ")[2]] for match in _WARNING.finditer(log)]
    if len(warnings) > WARNINGS:
        found.append(["", f"{len(warnings) - WARNINGS} earlier warnings are in {run.directory.log}."])
    return found + warnings[-WARNINGS:]


def _not_finite(rows: Rows, slices: tuple[str, ...]) -> list[str]:
    """Returns sentences about values that are not finite; a slice may have none of the objects that a metric counts."""
    damaged = {name: curve for name, curve in rows.curves.items() if curve.missing and not name.startswith(slices)}
    texts = []
    for names, what in (
        ([name for name in damaged if name.startswith(TRAINING)], "of training"),
        ([name for name in damaged if not name.startswith(TRAINING)], "of evaluations and hooks"),
    ):
        if names:
            first = min(damaged[name].first_missing for name in names)
            count = sum(damaged[name].missing for name in names)
            shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
            texts.append(f"Not finite: {count:,} values {what}, the first at step {first:,} ({shown}).")
    return texts


def all_data(runs: Sequence[Gathered]) -> list[dict[str, Any]]:
    """Returns the data of runs; how many points and images each may have depends on all of them."""
    points = thinning.points_of_each(sum(1 + len(run.rows.curves) for run in runs))
    found = []
    for run, name in zip(runs, names_of([run.record.path for run in runs]), strict=True):
        budget = Budget(IMAGE_BYTES // len(runs))
        found.append(run.data(name, points, budget))
        if budget.left_out:
            text = f"{budget.left_out} images are left out, since those of a report may have {IMAGE_BYTES >> 20} MiB."
            found[-1]["warnings"].append(["", text])
    return found
