"""A Task whose evaluation has metrics of each kind, computed from the examples alone."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import metrics
from engine.base import json_text
from engine.config.schema import Evaluation as Config
from engine.config.schema import MeshSpec, Target
from engine.loop.evaluation import Evaluator
from engine.metrics.results import json_values
from tests import zoo


class Found(metrics.Metric):
    """Fields of both kinds, as they arrive in `compute`."""

    counts: jax.Array
    scores: jax.Array = metrics.collected()

    def compute(self):
        return {"counts": self.counts, "scores": np.sort(self.scores), "image": metrics.Image(np.eye(2))}


class Measure(zoo.Classify):
    """Metrics of the examples alone, so that equal results are equal bits."""

    def evaluate(self, model, batch):
        x, y = batch["x"].reshape(-1, 4, 4), batch["y"]
        classes = jnp.stack([y, 3 - y, y, y], axis=1)
        ap = metrics.AveragePrecision.of(
            x[..., :2], x[..., 2], classes, jnp.round(x[..., :2]), classes[:, ::-1], classes=4, ranges=[(0, 1)]
        )
        return {
            "ap": ap,
            "confusion": metrics.ConfusionMatrix.of(y, 3 - y, ("a", "b", "c", "d"), batch["valid"]),
            "error": metrics.Quantiles.of(batch["x"], batch["valid"]),
            "found": Found(y, batch["x"][:, 0]),
            "roc": metrics.Roc.of(batch["x"][:, 3], y == 1),
            "loss": None,  # its last bits depend on the mesh
        }


def is_high(example, above=0.0):
    """Slice of the examples whose mean is above a value."""
    return example["x"].mean() > above


def by_class(example):
    """Slices of the examples of two classes."""
    return {"one": example["y"] == 1, "two": example["y"] == 2}


def is_odd(example):
    """Slice of the examples of odd classes, in Python, so that it is called on the host."""
    return bool(example["y"] % 2)


def by_id(example):
    """Slices by text."""
    return {"short": len(example["id"]) < 9, "zero": example["raw"].endswith(b"0")}


def name_of(example):
    """A text of the class and the values of an example."""
    return f"Straße {example['y']}: {example['x'].mean():.3f}"


def never(example):
    """Slice without examples."""
    return False


SLICED = Config(
    slices={
        "high": Target(target="tests.measuring.is_high", arguments={"above": 0.1}),
        "class": Target(target="tests.measuring.by_class"),
        "odd": Target(target="tests.measuring.is_odd"),
        "empty": Target(target="tests.measuring.never"),
    },
    worst=5,
    score="error/p90",
)


def results(devices: int | None = None) -> tuple[str, str]:
    """Returns the results on a mesh of `devices`, or of all devices, as JSON, with slices and worst examples.

    The second text is a hash of the metrics of single examples, with tags; "" in processes other than the primary.
    """
    program = zoo.program(Measure(), mesh=MeshSpec(), batch_size=12, devices=devices)
    tags = {"key": "tests.measuring.name_of", "label": "y"}
    config = dataclasses.replace(SLICED, per_example=True, tags=tags)
    evaluation = Evaluator("heldout", config, zoo.source(37, seed=5), program.evaluation, 12)
    found: Any = evaluation.run(program.init())
    file = found.pop("heldout/per_example", None)
    return json_text.dumps(json_values(found)), hashlib.sha256(file.content).hexdigest() if file else ""
