"""What the workers of `decoder.py` share: sizes, optimizer settings, first weights and tokens, in one file.

It imports numpy only, so that the PyTorch worker reads it without the engine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
STACKED = ("query", "key", "value", "out", "gate", "up", "down")
"""Weights with one entry for each layer."""


class Sizes(NamedTuple):
    """Sizes of the decoder and its batches."""

    width: int = 256
    hidden: int = 1024
    depth: int = 4
    heads: int = 8
    time: int = 256
    batch: int = 8
    vocabulary: int = 512

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of random first weights. Those of norms are 1."""
        square = (self.depth, self.width, self.width)
        return {
            "embed": (self.vocabulary, self.width),
            "head": (self.width, self.vocabulary),
            **dict.fromkeys(("query", "key", "value", "out"), square),
            **dict.fromkeys(("gate", "up"), (self.depth, self.width, self.hidden)),
            "down": (self.depth, self.hidden, self.width),
        }


SMALL = Sizes(width=32, hidden=64, depth=2, heads=2, time=16, batch=8, vocabulary=64)
"""Sizes to try the programs with."""


def write(file: Path, sizes: Sizes, steps: int) -> None:
    """Writes first weights and tokens `[steps * batch, time + 1]` of a small Markov chain, which can be learnt."""
    rng = np.random.default_rng(0)
    shapes = sizes.shapes()
    deviation = {name: 0.02 if name == "embed" else shape[-2] ** -0.5 for name, shape in shapes.items()}
    weights = {name: rng.normal(0, deviation[name], shape).astype(np.float32) for name, shape in shapes.items()}
    jump = rng.integers(0, sizes.vocabulary, (sizes.vocabulary, 4))
    tokens = np.zeros((steps * sizes.batch, sizes.time + 1), np.int32)
    for t in range(sizes.time):
        tokens[:, t + 1] = jump[tokens[:, t], rng.integers(0, 4, len(tokens))]
    arrays: dict[str, Any] = {"tokens": tokens, "sizes": np.array(sizes), **weights}
    np.savez(file, **arrays)


def read(file: str) -> tuple[Sizes, Mapping[str, np.ndarray]]:
    """Returns the sizes, and the arrays by name, each of which is read when it is asked for."""
    arrays = np.load(file)
    return Sizes(*arrays["sizes"].tolist()), arrays
