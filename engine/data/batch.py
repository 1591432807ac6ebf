"""The `Batch` type, used for every batch from the reader to the compiled step."""

import dataclasses

import jax
import numpy as np

from engine.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples and the weight of each row: numpy arrays on the host, global arrays on the devices."""

    examples: PyTree
    """Pytree of arrays `[rows, ...]`, the `batch` argument of `Task.loss`."""
    weight: jax.Array | np.ndarray
    """float32 `[rows]`: 1 for an example, 0 for padding or an example that could not be read."""
