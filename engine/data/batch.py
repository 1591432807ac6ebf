"""The one type of a batch, from its source to the step."""

import dataclasses

import jax
import numpy as np

from engine.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples and what each row counts: numpy arrays on the host, global arrays on the devices."""

    examples: PyTree
    """Arrays `[rows, ...]`, which the Task's loss takes."""
    weight: jax.Array | np.ndarray
    """float32 `[rows]`: 1 for an example, 0 for padding or an example that could not be read."""
