"""Starts a hand-written script that trains the digits for one step: the least that a start in JAX takes.

`first_step.py` runs it as `python -m benchmarks.bare_start`. It reads the same scans, without the engine.
"""

import csv
import gzip
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bare import BareLoop, perceptron
from benchmarks.first_step_hook import report_first_step

SIZES = (64, 128, 128, 10)
BATCH = 64


class Batch(NamedTuple):
    """A batch as the engine's feed returns it."""

    examples: dict[str, np.ndarray]


class Feed:
    """Returns the same batch, the first rows of the table, at every step."""

    def __init__(self):
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None and spec.origin is not None, "pip install scikit-learn"
        with gzip.open(Path(spec.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
            table = np.array(list(csv.reader(file)), np.float32)[:BATCH]
        self._batch = Batch({"image": table[:, :64] / 16, "label": table[:, 64].astype(np.int32)})

    def next(self, count: int) -> tuple[Batch, ...]:
        """Returns `count` batches on the device."""
        return (jax.device_put(self._batch),) * count


@jax.jit
def first_params() -> dict[str, jax.Array]:
    """Returns random weights of the perceptron."""
    params = {}
    for i, (rows, columns) in enumerate(itertools.pairwise(SIZES)):
        name = f"hidden/{i}" if i < len(SIZES) - 2 else "head"
        params[f"{name}/kernel"] = jax.random.normal(jax.random.key(i), (rows, columns)) / rows**0.5
        params[f"{name}/bias"] = jnp.zeros(columns)
    return params


if __name__ == "__main__":
    BareLoop(perceptron, first_params(), {}, Feed(), learning_rate=3e-3, total_steps=674).train(1)
    report_first_step()
