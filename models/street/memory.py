"""Detection in drives of lidar sweeps with a memory: a recurrent state for each cell of the grid from above.

The state follows the motion of the vehicle, and is updated by a convolutional gated recurrent unit (Ballas et al. 2016,
arXiv:1511.06432). Without memory the same network starts anew at every sweep.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from engine import Loss, Task, metrics, reset_at_starts

from .lidar import CELL, CELLS, STRIDE, CenterModel, LidarDetection, score_of

SIDE = CELLS // STRIDE  # cells of the memory along each side
NEAR = 2.0  # metres: a hidden object is found by a box of its class whose centre is nearer
LEAST = 0.3  # score of a box that counts


class State(nnx.Variable):
    """What is kept for each row of the batch from one step to the next."""


def moved(state, motion):
    """Returns a state `[batch, SIDE, SIDE, width]` in the frame of the vehicle after a motion, zeros from outside.

    Args:
        state: rows along y.
        motion: `[batch, 3]`: x, y and yaw of the vehicle in its frame before, in metres and radians.
    """
    size = CELL * STRIDE
    middle = (jnp.arange(SIDE) + 0.5 - SIDE / 2) * size
    c, s = (f(motion[:, 2])[:, None, None] for f in (jnp.cos, jnp.sin))
    x = (c * middle - s * middle[:, None] + motion[:, 0, None, None]) / size + SIDE / 2 - 0.5
    y = (s * middle + c * middle[:, None] + motion[:, 1, None, None]) / size + SIDE / 2 - 0.5

    def at(row, column):
        inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
        found = jax.vmap(lambda x, i, j: x[i, j])(state, row.clip(0, SIDE - 1), column.clip(0, SIDE - 1))
        return jnp.where(inside[..., None], found, 0)

    left, low = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    right, high = (x - left)[..., None], (y - low)[..., None]
    below = at(low, left) * (1 - right) + at(low, left + 1) * right
    above = at(low + 1, left) * (1 - right) + at(low + 1, left + 1) * right
    return below * (1 - high) + above * high


class Memory(nnx.Module):
    """A convolutional gated recurrent unit, whose state is added to the features."""

    def __init__(self, features: int, width: int, rngs: nnx.Rngs):
        self.reduce = nnx.Linear(features, width, rngs=rngs)
        self.gates = nnx.Conv(2 * width, 2 * width, (3, 3), rngs=rngs)
        self.candidate = nnx.Conv(2 * width, width, (3, 3), rngs=rngs)
        self.add = nnx.Linear(width, features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x, state):
        """Returns features `[batch, SIDE, SIDE, features]` and the new state `[batch, SIDE, SIDE, width]`."""
        seen = self.reduce(x)
        keep, reset = jnp.split(nnx.sigmoid(self.gates(jnp.concatenate([seen, state], -1))), 2, -1)
        new = nnx.tanh(self.candidate(jnp.concatenate([seen, reset * state], -1)))
        state = keep * state + (1 - keep) * new
        return x + self.add(state), state


class MemoryModel(nnx.Module):
    """The network of `models/street/lidar.py` with a memory before its heads."""

    def __init__(self, width: int, memory: int, rows: int, rngs: nnx.Rngs):
        self.sweep = CenterModel(width, rngs)
        self.memory = Memory(2 * width, memory, rngs)
        self.state = State(jnp.zeros((rows, SIDE, SIDE, memory)))

    def __call__(self, batch, remembers: bool):
        """Returns the result of the heads for all sweeps, `[batch * time, ...]`.

        Args:
            batch: entries `[batch, time, ...]` of Drives, and `sequence` of `engine.Sequences`.
            remembers: whether the state of a sweep comes from the sweep before.
        """
        rows, times = batch["points"].shape[:2]
        sweeps = jax.tree.map(joined, (batch["points"], batch["mask"]["points"]))
        features = self.sweep.features(*sweeps).reshape(rows, times, SIDE, SIDE, -1)
        state = reset_at_starts(self.state[...], batch["sequence"]["starts"])
        found = []
        for time in range(times):
            state = moved(state, batch["motion"][:, time]) if remembers else jnp.zeros_like(state)
            x, state = self.memory(features[:, time], state)
            found.append(x)
        self.state[...] = state
        return self.sweep.heads(joined(jnp.stack(found, 1)))


def joined(x):
    """Returns an array `[batch, time, ...]` as `[batch * time, ...]`."""
    return x.reshape(-1, *x.shape[2:])


@dataclasses.dataclass
class DriveDetection(Task):
    """Finds the objects around a vehicle in each sweep of a drive, also those that are hidden at the moment."""

    width: int = 32
    memory: int = 24  # numbers that are kept for each cell
    rows: int = 2  # train.global_batch_size
    remembers: bool = True
    full_precision = ("points", "boxes", "motion")
    model_state = (State,)

    def __post_init__(self):
        self.detection = LidarDetection(self.width)

    def build(self, rngs):
        return MemoryModel(self.width, self.memory, self.rows, rngs)

    def loss(self, model, batch, rng):
        terms = self.detection.loss_of_heads(model(batch, self.remembers), sweeps_of(batch)).terms
        rows = len(batch["sequence"]["starts"])
        by_row = {
            name: Loss(term.total.reshape(rows, -1).sum(1), term.weight.reshape(rows, -1).sum(1))
            for name, term in terms.items()
        }
        return Loss.sum(**by_row)

    def evaluate(self, model, batch):
        """Returns the detection score, and the share of hidden objects that are found; of windows of one sweep."""
        found, sweeps = self.detection.boxes_of(model(batch, self.remembers)), sweeps_of(batch)
        hidden = sweeps["mask"]["objects"] & (sweeps["hits"] == 0)
        apart = jnp.linalg.norm(sweeps["boxes"][:, :, None, :2] - found["boxes"][:, None, :, :2], axis=-1)
        same = sweeps["label"][:, :, None] == found["label"][:, None]
        hit = ((apart < NEAR) & same & (found["score"][:, None] > LEAST)).any(-1)
        return {"nds": score_of(found, sweeps), "hidden_recall": metrics.Ratio.of(hit & hidden, hidden)}


def sweeps_of(batch):
    """Returns the sweeps of windows as a batch of single sweeps; sweeps that pad a window have no objects."""
    sweeps = {name: jax.tree.map(joined, batch[name]) for name in ("boxes", "label", "moving", "hits", "mask")}
    present = sweeps["mask"]["objects"] & batch["sequence"]["valid"].reshape(-1, 1)
    return {**sweeps, "mask": {"objects": present}}
