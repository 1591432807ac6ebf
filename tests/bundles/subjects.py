"""Tasks with entry points, trained once for the tests of bundles."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import engine
from engine import Loss, Task
from tests import runs, zoo


@dataclasses.dataclass
class Reader(zoo.Classify):
    """Classifies examples, and returns embeddings of sequences of any length."""

    def predict(self, model, batch):
        logits = model(batch["x"])
        return {"class": logits.argmax(-1), "scores": {"all": jax.nn.softmax(logits)}}

    @engine.exported(
        inputs=lambda task: {"frames": zoo.examples(6)["x"].reshape(2, 3, -1)}, shapes={"frames": "n, t, 16"}
    )
    def embed(self, model, batch):
        return nnx.relu(model.hidden[0](batch["frames"])).mean(1)  # [n, width]

    @engine.exported
    def certain(self, model, batch):
        return {"certain": jax.nn.softmax(model(batch["x"])).max(-1) * batch["valid"]}


class Memory(nnx.Variable):
    """What a row remembers."""


class Recurrent(nnx.Module):
    """A cell that sums what it sees."""

    def __init__(self, rows: int, width: int, rngs: nnx.Rngs):
        self.cell, self.head = nnx.GRUCell(1, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.memory = Memory(jnp.zeros((rows, width)))

    def __call__(self, seen, sequence):
        memory = engine.reset_at_starts(self.memory[...], sequence["starts"])
        found = []
        for t in range(seen.shape[1]):
            new, _ = self.cell(memory, seen[:, t, None])
            memory = jnp.where(sequence["valid"][:, t, None], new, memory)
            found.append(self.head(new)[:, 0])
        self.memory[...] = memory
        return jnp.stack(found, axis=1)  # [batch, length]


@dataclasses.dataclass
class Track(Task):
    """Follows a number through a drive."""

    rows: int = 8
    width: int = 8
    model_state = (Memory,)

    def build(self, rngs):
        return Recurrent(self.rows, self.width, rngs)

    def loss(self, model, batch, rng):
        return Loss.of((model(batch["seen"], batch["sequence"]) - batch["sum"]) ** 2, batch["sequence"]["valid"])

    def predict(self, model, batch):
        return {"sum": model(batch["seen"], batch["sequence"])}


def drives(count: int = 8, frames: int = 50):
    """Returns frames of drives."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(count, frames)).astype(np.float32)
    return engine.ArraySource(
        {
            "drive": np.repeat(np.arange(count, dtype=np.int32), frames),
            "time": np.tile(np.arange(frames, dtype=np.float32), count),
            "seen": seen.reshape(-1),
            "sum": np.cumsum(seen, axis=1).reshape(-1) / 10,
        }
    )


@functools.cache
def reader_run(precision: str = "float32") -> Path:
    """Returns a trained run of `Reader`."""
    path = Path(tempfile.mkdtemp()) / "reader"
    task = dict(target="tests.bundles.subjects.Reader")
    engine.train(
        runs.config(task=task, train__total="4 steps", train__precision=precision, name="reader"), workdir=path
    )
    return path


@functools.cache
def track_run() -> Path:
    """Returns a trained run of `Track`, whose windows have 2 frames."""
    path = Path(tempfile.mkdtemp()) / "track"
    data = dict(target="engine.Sequences", source=dict(target="tests.bundles.subjects.drives"), length=2, carry=True)
    task, heldout = dict(target="tests.bundles.subjects.Track"), dict(data=data, batch_size=8)
    settings = dict(task=task, data=data, evaluations__heldout=heldout, train__global_batch_size=8)
    engine.train(runs.config(**settings, train__total="3 steps"), workdir=path)
    return path
