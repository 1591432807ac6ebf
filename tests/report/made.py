"""Run directories for tests of reports: rows, time, figures and a log, without training."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.observe.drawing import png
from tests.experiments.made import make_run

SLICES = {
    "evaluations.heldout.slices.night.target": "slices.night",
    "evaluations.heldout.slices.digit.target": "slices.digit",
}


def training(step: int, loss: float, **more: float) -> dict[str, Any]:
    """A row of training, one second after the row of the step before."""
    return {"step": step, "attempt": 1, "batch": step - 1, "time": 1000.0 + step, "loss": loss, **more}


def write_rows(run: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the `metrics.jsonl` of a run."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_figure(path: Path, gray: int = 128) -> None:
    """Writes a small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.full((24, 32, 3), gray, np.uint8)))


def full_run(folder: Path, steps: int = 40, shift: float = 0.0, **values: Any) -> Path:
    """Writes a run with everything that a report shows, and returns its directory.

    Args:
        folder: the run directory.
        steps: steps, of which each has a row.
        shift: is added to the losses.
        values: as for `make_run`.
    """
    results = {steps // 2: {"heldout/accuracy": 0.8}, steps: {"heldout/accuracy": 0.7}}
    given = {"checkpoint__best": "heldout/accuracy", "metrics": {"heldout/accuracy": 0.7}, **values}
    run = make_run(folder, results, step=steps, total_steps=steps, **given)
    with open(run / "config.txt", "a") as file:
        file.writelines(f"{name}: {value}\n" for name, value in SLICES.items())
    rows = [{"step": 0, "attempt": 1, "time": 1000.0, "compile_s": 2.0}]
    for step in range(1, steps + 1):
        measured = {"examples_per_s": 1000.0 + step, "step_time_s": 0.016, "data_wait": 0.25, "host_rss_gib": 0.5}
        rows.append(training(step, 2 / step + shift, grad_norm=1.0, **measured))
        if step in (steps // 2, steps):
            rows.append({"step": step, "attempt": 1, "time": 1000.5 + step, **evaluation(step)})
    write_rows(run, rows)
    kinds = {"init": (2.0, 0), "compile": (2.0, 0), "step": (6.0, steps), "slow process": (1.5, 0)}
    entries = [{"kind": kind, "seconds": seconds, "steps": count} for kind, (seconds, count) in kinds.items()]
    named = {"attempt": 1, "step": 10, "process": "process 1", "cause": "data"}
    (run / "goodput.jsonl").write_text("".join(json.dumps({**entry, **named}) + "\n" for entry in entries))
    for rank, example in enumerate((7, 3)):
        write_figure(run / f"figures/heldout/{steps}/{rank}-example-{example}.png", 60 + 90 * rank)
    write_figure(run / "figures/lights/map.png")
    (run / f"checkpoints/{steps}").mkdir()
    (run / "log.txt").write_text("2026-01-01T00:00:00Z warning: the disk is slow\n2026-01-01T00:00:01Z saved\n")
    return run


def evaluation(step: int) -> dict[str, Any]:
    """The results of an evaluation: numbers, slices, and one result of each other kind."""
    return {
        "heldout/accuracy": 0.8,
        "heldout/loss": 1 / step,
        "heldout/night/accuracy": 0.5,
        "heldout/night/examples": 12,
        "heldout/digit/1/accuracy": 0.9,
        "heldout/digit/1/examples": 30,
        "heldout/worst_examples": {"example": [7, 3], "loss": [4.5, 2.5], "id": ["seven", "three"]},
        "heldout/roc": {"false positives": [0.0, 0.5, 1.0], "true positives": [0.0, 0.9, 1.0]},
        "heldout/errors": {"edges": [0, 1, 2], "counts": [5, 3]},
        "heldout/classes": {"class": ["car", "bus"], "ap": [0.5, 0.25]},
        "heldout/confusion": [[5, 1], [2, 8]],
        "layers/grad_norm": 1.0,
        "layers/grad_norm/encoder": 0.5,
    }
