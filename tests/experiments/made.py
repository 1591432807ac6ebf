"""Run directories that tests write: the files that a list of runs reads, with the writers of the engine."""

from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.checkpoint.policy import RESULTS
from engine.config import to_text
from engine.run import status
from tests import runs


def make_run(folder: Path, results: dict[int, dict[str, float]] | None = None, **values: Any) -> Path:
    """Writes a run directory and returns it.

    Args:
        folder: the run directory.
        results: step -> results of an evaluation.
        values: fields of the status; and settings, whose names contain `__`: `train__seed=3`.
    """
    settings = {name: value for name, value in values.items() if "__" in name}
    found = {name: value for name, value in values.items() if name not in settings}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.txt").write_text(to_text(runs.config(**settings)))
    if results is not None:
        (folder / "checkpoints" / RESULTS).write_text(json_text.dumps({str(step): x for step, x in results.items()}))
    status.write(folder / "status.json", status.Status(**{"state": "done", **found}))
    return folder
