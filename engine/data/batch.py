"""The `Batch` type, used for every batch from the reader to the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from engine.base.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples and the weight of each row: numpy arrays on the host, global arrays on the devices."""

    examples: PyTree
    """Pytree of arrays `[rows, ...]`, the `batch` argument of `Task.loss`."""
    weight: jax.Array | np.ndarray
    """float32 `[rows]`: 1 for an example, 0 for padding or an example that could not be read."""


def abstract_batch(example: PyTree, rows: int, sharding: Sharding) -> Batch:
    """Returns a batch of `rows` examples, as jax.ShapeDtypeStruct with shardings.

    Args:
        example: one example, as a pytree of ShapeDtypeStruct.
        rows: rows of the global batch.
        sharding: of the rows.
    """

    def whole(x: jax.ShapeDtypeStruct) -> PyTree:
        return jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding)

    return Batch(jax.tree.map(whole, example), whole(jax.ShapeDtypeStruct((), jnp.float32)))
