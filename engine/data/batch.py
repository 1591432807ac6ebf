"""The `Batch` type, used for every batch from the reader to the compiled step, and its way to the devices.

Each process feeds the rows of its own devices. A row that devices of several processes hold is fed by each of them.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from engine.base.errors import ShardingError
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
        sharding: sharding of the rows.
    """

    def whole(x: jax.ShapeDtypeStruct) -> PyTree:
        return jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding)

    return Batch(jax.tree.map(whole, example), whole(jax.ShapeDtypeStruct((), jnp.float32)))


MEASURE_EVERY, FIRST_MEASURED = 128, 2  # transfers to a single device; the first one prepares the device


def local_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """Returns the rows of a batch that this process feeds: a slice, or row numbers `[rows]` if they have gaps.

    Args:
        sharding: sharding of the batch dimension, applied to every array of a batch.
        batch_size: rows of the global batch.

    Raises:
        ShardingError: the batch does not divide over the devices.
    """
    axes = jax.tree.leaves(tuple(sharding.spec[:1]))
    shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
    if batch_size % shards:
        raise ShardingError(
            f"A batch of {batch_size} rows is not divisible by {shards} shards ({' x '.join(axes)}). "
            f"Use a multiple of {shards} ({-(-batch_size // shards) * shards}), or another mesh."
        )
    parts = sharding.addressable_devices_indices_map((batch_size,))
    spans = {index[0].indices(batch_size)[:2] for index in parts.values() if index}
    numbers = np.unique(np.concatenate([np.arange(*span) for span in spans]))
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if len(numbers) == last + 1 - first else numbers


class Placement:
    """Turns host batches into the arguments of a compiled program.

    Args:
        sharding: sharding of the batch dimension of every array.
        ones: host weight that full batches share, float32 `[rows]`.
        measured: whether some transfers to a single device are measured. A program that is not compiled ahead of time
            would be compiled twice: the arguments of these calls are arrays of the device.
    """

    def __init__(self, sharding: NamedSharding, ones: np.ndarray, measured: bool = True):
        self._sharding, self._ones, self._measured = sharding, ones, measured
        # A transfer costs 69 us and the smallest steps 80 us, so full batches share one weight on the devices, too.
        self._placed_ones = self._placed(ones)
        self._calls, self._latest_s = 0, 0.0
        self.transfer_s = 0.0
        """Seconds that transfers have taken so far; for a single device estimated from every MEASURE_EVERY-th one."""

    def __call__(self, batches: Sequence[Batch]) -> tuple[Batch, ...]:
        """Returns the batches as global arrays."""
        begin = time.perf_counter()
        self._calls += 1
        examples = tuple([batch.examples for batch in batches])
        if self._sharding.mesh.size > 1:
            examples = to_global_arrays(examples, self._sharding)
            self._latest_s = time.perf_counter() - begin
        elif self._measured and self._calls % MEASURE_EVERY == FIRST_MEASURED:
            examples = jax.block_until_ready(jax.device_put(examples, self._sharding))
            self._latest_s = time.perf_counter() - begin
        self.transfer_s += self._latest_s
        return tuple([Batch(x, self._weight(batch.weight)) for x, batch in zip(examples, batches, strict=True)])

    def _weight(self, weight: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        if weight is self._ones or weight.all():  # a batch from a worker process holds a copy
            return self._placed_ones
        return self._placed(weight)

    def _placed(self, weight: jax.Array | np.ndarray) -> jax.Array:
        """Returns a weight with its sharding on a single device, too: JAX compiles a program once for each sharding."""
        return jax.device_put(to_global_arrays(weight, self._sharding), self._sharding)


def to_global_arrays(rows: PyTree, sharding: NamedSharding) -> PyTree:
    """Returns this process's rows as the global arrays that a program takes.

    For a single device the rows are returned unchanged: the call of the program transfers them in a third of the time.
    The transfer continues after the return, so the caller must not modify the rows afterwards.
    """
    if sharding.mesh.size == 1:
        return rows
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return jax.make_array_from_process_local_data(sharding, rows)
