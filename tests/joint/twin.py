"""A small Task with two datasets of different labels, and the same loss written by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import ArraySource, Joint, Loss, Mean, Task, UncertaintyWeights
from engine.data.batches import Batches
from engine.joint.bundles import Bundles
from engine.joint.task import adapted
from engine.layers import Dropout, fold_in


class Net(nnx.Module):
    """A shared layer with a head of classes and a head of numbers."""

    def __init__(self, width: int, dropout: float, learned: bool, rngs: nnx.Rngs):
        self.trunk = nnx.Linear(8, width, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.classes = nnx.Linear(width, 3, rngs=rngs)
        self.offset = nnx.Linear(width, 2, rngs=rngs)
        self.weights = UncertaintyWeights(("boxes", "lanes")) if learned else None

    def __call__(self, x: jax.Array, rng: Any = None) -> jax.Array:
        return self.dropout(nnx.tanh(self.trunk(x)), fold_in(rng, 0))


def boxes_loss(model: Net, batch: Any, rng: Any) -> Loss:
    """Cross entropy, `[rows]`, with a mask."""
    logits = model.classes(model(batch["x"], rng))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return Loss.of(losses, batch["valid"], {"accuracy": Mean.of(logits.argmax(-1) == batch["label"])})


def lanes_loss(model: Net, batch: Any, rng: Any) -> Loss:
    """Squared error of points, `[rows]`."""
    error = jnp.square(model.offset(model(batch["picture"], rng)) - batch["points"])
    return Loss.of(error, metrics={"error": Mean.of(jnp.abs(error))})


@dataclasses.dataclass
class Twin(Task):
    """Classifies boxes and places lanes with one trunk."""

    width: int = 16
    dropout: float = 0.0
    scale: float = 0.5
    learned: bool = False
    left_out: str = ""

    def build(self, rngs):
        return Net(self.width, self.dropout, self.learned, rngs)

    def loss(self, model, batch, rng):
        found = {}
        for name, loss, factor in (("boxes", boxes_loss, 1.0), ("lanes", lanes_loss, self.scale)):
            if name in batch and name != self.left_out:
                found[name] = factor * loss(model, batch[name], None if rng is None else rng[name])
        if "stream" in batch and not self.learned:
            found["stream"] = Loss.of(model.offset(model(batch["stream"]["x"]))[:, 0])
        return model.weights(found) if self.learned else Loss.sum(**found)

    def predict(self, model, batch):
        return {"points": model.offset(model(batch["lanes"]["picture"]))}


def boxes(n: int = 40, seed: int = 1) -> ArraySource:
    """Returns examples of `x`, `label` and `valid`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    label = (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0.5)
    return ArraySource({"x": x, "label": label, "valid": (rng.random(n) < 0.8).astype(np.float32)})


def lanes(n: int = 27, seed: int = 2) -> ArraySource:
    """Returns examples of `picture` and `points`."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(size=(n, 8)).astype(np.float32)
    return ArraySource({"picture": picture, "points": np.tanh(picture[:, :2] + picture[:, 2:4])})


class Polylines:
    """Examples of 1 to 5 elements, and their number."""

    def __len__(self):
        return 31

    def __getitem__(self, index):
        return {"at": np.full((1 + index % 5, 2), index, np.float32), "number": np.int32(index)}


class Shards:
    """A stream of numbers that notes where it is opened."""

    shards = 3

    def __init__(self):
        self.opened = []

    def counts(self):
        return [7, 7, 7]

    def open(self, shard, position):
        self.opened.append((shard, position))
        yield from ((shard * 7 + item, item + 1) for item in range(position or 0, 7))

    def decode(self, item):
        return {"number": np.int32(item), "x": np.cos(item + np.arange(8, dtype=np.float32))}


def joint(**settings: Any) -> Joint:
    """Returns both datasets, with two boxes and one lane in a bundle."""
    return Joint({"boxes": boxes(), "lanes": lanes()}, **{"rows": {"boxes": 2}, **settings})


def for_joint(**settings: Any) -> Task:
    """Returns the Task as a run on both datasets has it."""
    return adapted(Twin(**settings), joint(), "data")


def bundles(count: int, seed: int) -> Bundles:
    """Returns a batch of so many bundles."""
    return Batches(joint(), count, seed, True)[0].examples
