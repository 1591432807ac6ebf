"""Handwritten digits: 1,797 scans of 8x8 pixels (UCI, included in scikit-learn's wheel) and a small classifier."""

import dataclasses
import functools
import gzip
import importlib.util
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import ArraySource, Loss, Mean, Task


class Classifier(nnx.Module):
    """A perceptron with two hidden layers."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(64, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image):
        """Returns logits `[batch, 10]` for images `[batch, 8, 8]` in 0..1."""
        x = image.reshape(image.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


@dataclasses.dataclass
class Digits(Task):
    """Classifies a scan as one of ten digits."""

    width: int = 128

    def build(self, rngs):
        return Classifier(self.width, rngs=rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["image"])  # [batch, 10]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return Loss.of(losses, metrics={"accuracy": Mean.of(correct)})

    def predict(self, model, batch):
        logits = model(batch["image"])
        return {"digit": jnp.argmax(logits, axis=-1), "probability": jnp.max(nnx.softmax(logits), axis=-1)}


def scans(split: Literal["train", "test"] = "train", labels: int | None = None) -> ArraySource:
    """Returns the scans of a split: `image` float32 `[8, 8]` in 0..1 and `label` int32. Every fifth scan is test.

    With `labels`, only that many scans, evenly spread, have a label; that of the others is -1.
    """
    table = _table()
    table = table[(np.arange(len(table)) % 5 == 0) == (split == "test")]
    images, label = table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(np.int32)
    if labels is not None:
        known = np.linspace(0, len(label) - 1, labels).astype(int)
        label[np.isin(np.arange(len(label)), known, invert=True)] = -1
    return ArraySource({"image": images, "label": label})


@functools.cache  # both splits of a run
def _table() -> np.ndarray:
    """Returns the rows of the file: 64 pixels in 0..16, and the label."""
    spec = importlib.util.find_spec("sklearn")  # only finds the file: importing scikit-learn takes a second
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the scans are a file of scikit-learn", name="sklearn")
    with gzip.open(Path(spec.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
        return np.loadtxt(file, np.float32, delimiter=",")
