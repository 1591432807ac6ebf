"""What `kill_storm.py` trains: digits, or one of three variants with more to restore.

Sizes of batches and parameters divide by 2, 3 and 4, so that a variant runs on any of these numbers of processes.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import workloads
from engine import ArraySource, Mixture, Packed, Weighted
from engine.config.schema import Config

DIGITS = "digits"
BATCH = 24
FEATURES, WIDTH, CLASSES = 48, 24, 12
SHARDS, ITEMS = 12, 37

OPTIMIZERS: Mapping[str, Any] = {
    "optimizer__schedule": "constant",  # the steps of a run grow with each number of processes
    "optimizer__groups": {
        "head": {
            "match": "^head/",
            "target": "optax.sgd",
            "momentum": 0.9,
            "learning_rate": 0.05,
            "schedule": "constant",
            "clip_norm": 0.5,
            "every": 2,
        }
    },
    "train__ema_decay": 0.9,
}
"""AdamW, and SGD with momentum for the head, in every second step; averaged weights."""


class Readings:
    """A stream of shards in order, each example of which depends on its number only."""

    shards = SHARDS

    def counts(self) -> list[int]:
        """Returns the examples of each shard."""
        return [ITEMS] * SHARDS

    def open(self, shard: int, position: Any, /) -> Iterator[tuple[int, int]]:
        """Yields numbers of examples with the position after each."""
        yield from ((shard * ITEMS + item, item + 1) for item in range(position or 0, ITEMS))

    def decode(self, item: int) -> Mapping[str, Any]:
        """Returns the example of a number."""
        rng = np.random.default_rng(item)
        return {"image": rng.standard_normal(FEATURES, np.float32), "label": rng.integers(0, CLASSES, dtype=np.int32)}


def drawn() -> Mixture:
    """Returns a stream, mixed with examples that are drawn more or less often by their class."""
    rare: Any = workloads.vectors(FEATURES, 100)
    labels = np.asarray([int(rare[index]["label"]) for index in range(len(rare))])
    weighted = Weighted(rare, tags=labels, balance="class")
    return Mixture({"stream": Readings(), "weighted": weighted}, {"stream": 3, "weighted": 1})


@functools.cache
def _texts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(1, 60, rng.integers(3, 40)) for _ in range(200)]


class Documents:
    """Texts of 3 to 39 tokens."""

    def __len__(self) -> int:
        return len(_texts())

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return {"tokens": _texts()[index]}


def packed() -> Packed:
    """Returns the texts in rows of 16 tokens, none of them split."""
    return Packed(Documents(), 16, split=False)


def vectors() -> ArraySource:
    """Returns noise with labels."""
    return workloads.vectors(FEATURES, 500)


_PERCEPTRON = {"target": "benchmarks.workloads.Classify", "sizes": [FEATURES, WIDTH, CLASSES]}
_DECODER = {
    "target": "convoy_zoo.models.decoder.LanguageModel",
    "vocabulary": 60,
    "width": WIDTH,
    "hidden": 2 * WIDTH,
    "depth": 1,
    "heads": 2,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "streams": {"task": _PERCEPTRON, "data": {"target": "benchmarks.storm_workloads.drawn"}},
    "optimizers": {"task": _PERCEPTRON, "data": {"target": "benchmarks.storm_workloads.vectors"}, **OPTIMIZERS},
    "packed": {"task": _DECODER, "data": {"target": "benchmarks.storm_workloads.packed"}, **OPTIMIZERS},
}
"""Name -> settings in addition to those of every storm."""


def config(variant: str, steps: int, **settings: Any) -> Config:
    """Returns the config of a variant, or of the digits."""
    if variant == DIGITS:
        return workloads.config(workloads.DIGITS, steps=steps, train__ema_decay=0.9, **settings)
    settings = {"train__global_batch_size": BATCH, "optimizer__schedule": "constant", **VARIANTS[variant], **settings}
    return workloads.config(workloads.MLP, steps=steps, **settings)
