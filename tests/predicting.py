"""A Task with predictions, and examples with text."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from engine import Bucketed
from engine.data.source import BaseSource
from tests import zoo

N = 37  # not a multiple of any batch size here
NAMES = [f"scene {i}" + "x" * (i % 5) for i in range(N)]
SIZES = [7 * i % 8 + 1 for i in range(N)]  # points of each example, 1 to 8 in mixed order


@dataclasses.dataclass
class Predict(zoo.Classify):
    """Predicts the class and its logits; `name` is the name of the class."""

    name: str = "label"

    def predict(self, model, batch):
        logits = model(batch["x"])
        return {self.name: logits.argmax(-1), "scores": {"logits": logits}}


class Unreadable(BaseSource):
    """The examples with text; some cannot be read."""

    def __init__(self, bad=(), n=N):
        self.rows, self.bad, self.n = zoo.examples(N, seed=5), bad, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("gone")
        return {**{name: rows[index] for name, rows in self.rows.items()}, "id": NAMES[index], "raw": b"\0%d" % index}


class Ragged(Unreadable):
    """The examples with points: example i has SIZES[i] of them, and each is i."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "points": np.full(SIZES[index], index, np.float32)}

    def lengths(self):
        return SIZES[: self.n]


def bucketed(bad=()):
    """Returns the examples with points in buckets, of which evaluations read the shortest first."""
    return Bucketed(Ragged(bad), [2, 8], "points")


FAR = 123456.0 + 1 / 1024  # metres: float32 would move it by 1 mm


@dataclasses.dataclass
class Boxes(zoo.Classify):
    """Predicts one box for each example; `without` is a prediction that it leaves out."""

    without: str = ""

    def predict(self, model, batch):
        label = model(batch["x"]).argmax(-1)[:, None] % 10
        found = {"boxes": jnp.ones((*label.shape, 9)), "score": jnp.ones(label.shape), "label": label}
        found["attribute"] = 0 * label
        return {name: value for name, value in found.items() if name != self.without}


class Samples(Unreadable):
    """The examples, with what identifies a sample of nuScenes; `without` is an entry that is left out."""

    def __init__(self, bad=(), without=""):
        super().__init__(bad, 5)
        self.without = without

    def __getitem__(self, index):
        pose = np.eye(4)
        pose[0, 3] = FAR
        found = {**super().__getitem__(index), "sample": f"token{index}", "ego_to_world": pose, "modality": "lidar"}
        return {name: value for name, value in found.items() if name != self.without}
