"""Frames of drives with an object that is seen now and then, and a model that remembers where it was."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

import engine
from engine import ArraySource, Loss, Mean, Task

SIZES = (9, 4, 14, 6, 11, 3, 8, 5, 17, 2)
"""Frames of each drive."""
WIDTH = 4


TAG = "tests.drives.drive_of"


def drive_of(window) -> int:
    """Returns the drive of a window."""
    return int(window["drive"][0])


class Memory(nnx.Variable):
    """What a row remembers of its drive."""


def frames(sizes=SIZES, seed: int = 0, **entries) -> ArraySource:
    """Returns the frames of drives of these sizes: a position that is seen in one of three frames."""
    rng = np.random.default_rng(seed)
    drive, time = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    y = np.concatenate([np.cumsum(rng.normal(size=size)) for size in sizes]).astype(np.float32)
    seen = rng.random(len(y)) < 0.3
    found = {"drive": drive.astype(np.int32), "time": time.astype(np.float32) / 10, "y": y, "seen": seen}
    return ArraySource({**found, "x": np.where(seen, y, 0).astype(np.float32), **entries})


class Tracker(nnx.Module):
    """A recurrent network, one step for each frame."""

    def __init__(self, rows, rngs):
        self.body, self.head = nnx.Linear(2 + WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 1, rngs=rngs)
        self.memory = Memory(jnp.zeros((rows, WIDTH)))

    def __call__(self, x, seen, starts, valid):
        """Returns `[batch, length]` for inputs `[batch, length]`."""
        memory = engine.reset_at_starts(self.memory[...], starts)
        outputs = []
        for t in range(x.shape[1]):
            inputs = jnp.stack([x[:, t], seen[:, t]], axis=1)
            new = jnp.tanh(self.body(jnp.concatenate([inputs, memory], axis=1)))
            memory = jnp.where(valid[:, t, None], new, memory)
            outputs.append(self.head(new)[:, 0])
        self.memory[...] = memory
        return jnp.stack(outputs, axis=1)


@dataclasses.dataclass
class Track(Task):
    """Finds the object in each frame."""

    rows: int = 4

    model_state = (Memory,)

    def build(self, rngs):
        return Tracker(self.rows, rngs)

    def _error(self, model, batch):
        sequence = batch["sequence"]
        found = model(batch["x"], batch["seen"].astype(jnp.float32), sequence["starts"], sequence["valid"])
        return (found - batch["y"]) ** 2, sequence["valid"]

    def loss(self, model, batch, rng):
        return Loss.of(*self._error(model, batch))

    def predict(self, model, batch):
        return {"error": self._error(model, batch)[0]}

    def evaluate(self, model, batch):
        error, valid = self._error(model, batch)
        return {"error": Mean((error * valid).sum(1), valid.sum(1).astype(jnp.float32))}


class Total(Track):
    """Its metric is one number for a batch."""

    def evaluate(self, model, batch):
        error, valid = self._error(model, batch)
        return {"error": Mean((error * valid).sum(), valid.sum().astype(jnp.float32))}


def by_hand(weights, source: ArraySource, initial: float = 0.0) -> np.ndarray:
    """Returns the squared error in each frame, `[frames]`: a loop over each drive, with numpy alone."""
    arrays = source.arrays
    found = np.zeros(len(source), np.float32)
    for drive in np.unique(arrays["drive"]):
        memory = np.full(WIDTH, initial, np.float32)
        for frame in np.flatnonzero(arrays["drive"] == drive):
            inputs = np.concatenate([[arrays["x"][frame], arrays["seen"][frame]], memory]).astype(np.float32)
            memory = np.tanh(inputs @ weights["body/kernel"] + weights["body/bias"])
            found[frame] = (memory @ weights["head/kernel"] + weights["head/bias"])[0] - arrays["y"][frame]
    return found**2


def windows(length: int = 4, **arguments) -> engine.Sequences:
    """Returns the windows of `frames` with rows that continue."""
    return engine.Sequences(frames(**arguments), length=length, carry=True)
