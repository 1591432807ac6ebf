"""Run directories with rows of every kind of result, written by the writer of the engine."""

from pathlib import Path
from typing import Any

import numpy as np

from engine.config import to_text
from engine.metrics.results import Bins, Curve, Image, Table
from engine.observe.writer import MetricWriter
from engine.run import status
from engine.run.directory import RunDirectory
from tests import runs

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def training_row(step: int, loss: float, attempt: int = 1) -> dict[str, Any]:
    """A row of training."""
    return {"step": step, "attempt": attempt, "batch": step - 1, "time": 100.0 + step + attempt / 8, "loss": loss}


def results_row(step: int, attempt: int = 1) -> dict[str, Any]:
    """A row with a result of each kind."""
    return {
        "step": step,
        "attempt": attempt,
        "time": 100.5 + step + attempt / 8,
        "heldout/accuracy": 0.5,
        "heldout/figures/0": Image(PIXELS, f"heldout/{step}/0-example-7.png"),
        "heldout/weights": Bins(np.array([0.0, 1.0, 2.0]), np.array([3, 4])),
        "heldout/roc": Curve(np.array([0.0, 1.0]), np.array([0.0, 2.0]), "recall", "precision"),
        "heldout/worst": Table({"example": [7, 8], "name": ["a", "b"]}),
        "heldout/norms": np.array([1.0, 2.0]),
    }


def write_rows(directory: RunDirectory, *rows: dict[str, Any], **options: Any) -> None:
    """Appends rows to the metrics of a run, as an attempt does."""
    with MetricWriter(directory.metrics, None, figures=directory.figures, **options) as writer:
        for row in rows:
            writer.push(lambda row=row: [row])


def make_run(path: Path, *rows: dict[str, Any], state: str = "done", **settings: Any) -> RunDirectory:
    """Writes a run directory with rows."""
    path.mkdir(parents=True)
    directory = RunDirectory(path)
    directory.config.write_text(to_text(runs.config(**settings)))
    status.write(directory.status, status.Status(state=state, reason="a reason" if state == "failed" else ""))
    write_rows(directory, *rows)
    return directory
