"""A Task of tests/zoo.py that predicts, and a run of it."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import engine
from engine.api.saved_run import LoadedRun
from engine.bundles.forward import Forward, predict_of
from engine.data.source import example_spec
from tests import runs, zoo

BITS = 2
"""So few that a small model gets much worse."""
HELDOUT = dict(target="tests.zoo.source", n=403, seed=9)
TARGET = f"{__name__}.Classify"
_FOLDER = tempfile.TemporaryDirectory(prefix="quantization")


class Classify(zoo.Classify):
    """Predicts logits."""

    def predict(self, model, batch):
        return {"logits": model(batch["x"])}


def train(path: Path, task: dict[str, Any], **settings: Any) -> Path:
    """Trains a run for 60 steps."""
    changes = dict(
        train__total="60 steps", optimizer__learning_rate=0.02, checkpoint__every=None, log__every="60 steps"
    )
    changes |= dict(data__n=1024, evaluations__heldout=dict(data=HELDOUT, every=None))
    engine.train(runs.config(task=task, **changes, **settings), workdir=path)
    return path


@functools.cache
def trained() -> tuple[Path, LoadedRun]:
    """A trained run, for all tests of a process."""
    path = Path(_FOLDER.name) / "run"
    train(path, dict(target=TARGET))
    return path, engine.load(path)


def forward(found: LoadedRun) -> Forward:
    """Returns its predictions as a function."""
    return predict_of(found, example_spec(zoo.source()))
