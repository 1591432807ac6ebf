"""A run with checkpoints to evaluate, for the tests of evaluations apart from the training."""

import json
from pathlib import Path
from typing import Any

import engine
from engine.api.saved_evaluations import StoredResults, read_results
from engine.run.directory import RunDirectory
from tests import runs

SMALL = ["evaluations.heldout.data.n=20"]


def train(path: Path) -> Path:
    """Trains a run with checkpoints of steps 2, 4 and 6."""
    settings = dict(train__total="6 steps", checkpoint__best="heldout/loss", checkpoint__every=None)
    settings |= dict(checkpoint__keep_latest=9, evaluations__heldout__every="2 steps")
    engine.train(runs.config(**settings), workdir=path)  # saves the steps that it evaluates
    return path


def stored(run: Path) -> list[StoredResults]:
    """Returns the stored results of a run."""
    return read_results(RunDirectory(run).evaluations)


def set_status(run: Path, **changes: Any) -> None:
    """Changes fields of status.json."""
    file = run / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
