"""A Task of tests/zoo.py that predicts, and a run of it."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import engine
from engine import layers
from engine.api.saved_run import LoadedRun
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


class Layer(nnx.Module):
    """A layer of a stack."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = layers.Dense(zoo.SIZE, zoo.SIZE, axes=("embed", "mlp"), rngs=rngs)

    def __call__(self, x, rng):
        return x + nnx.tanh(self.dense(x))


class Stack(nnx.Module):
    """Two layers and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.stack, self.head = layers.Stack(Layer, 2, rngs=rngs), nnx.Linear(zoo.SIZE, 4, rngs=rngs)

    def __call__(self, x, rng=None):
        return self.head(self.stack(x))


class Stacked(Classify):
    """A stack, whose layers may be the stages of a pipeline."""

    def build(self, rngs):
        return Stack(rngs)


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


class Forward(NamedTuple):
    """Predictions as a function of weights and inputs."""

    function: Callable[[Any, Any], Any]
    weights: dict[str, np.ndarray]
    inputs: dict[str, jax.ShapeDtypeStruct]


def forward(found: LoadedRun) -> Forward:
    """Returns the predictions of a run as a function."""
    graph, state = nnx.split(found.model)
    variables = {"/".join(map(str, path)): (path, x) for path, x in nnx.to_flat_state(state)}

    def function(weights: Any, inputs: Any) -> Any:
        values = [(path, x.replace(weights[name])) for name, (path, x) in variables.items()]
        return found.task.predict(nnx.merge(graph, nnx.from_flat_state(values)), inputs)

    weights = {name: np.asarray(x.get_value()) for name, (_, x) in variables.items()}
    return Forward(function, weights, {"x": jax.ShapeDtypeStruct((zoo.SIZE,), np.float32)})
