"""Placement: from rows on the host to global arrays for a sharding.

Owns: which rows of a batch this process feeds, and their way onto its devices. Does not own: the sharding, which is
given. Rows follow the sharding: they are those of this process's devices, and a row that several processes hold is
fed by each of them.
"""

import math

import jax
import numpy as np
from jax.sharding import NamedSharding

from engine.config.errors import ShardingError
from engine.data.source import Batch


def local_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """Returns the rows of a batch that this process feeds: a slice, or row numbers `[rows]` where they have gaps.

    Args:
        sharding: of the batch dimension; applied to every array of a batch.
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


def place(host_batch: Batch, sharding: NamedSharding) -> Batch:
    """Returns what a program takes as global arrays for this process's rows; also for a tuple of batches, in one call.

    A single device has them handed over as they are by the call of the program, in a third of the time. The copy goes
    on after the return. The arrays of `host_batch` must not be written to afterwards.
    """
    if sharding.mesh.size == 1:
        return host_batch
    if jax.process_count() == 1:
        return jax.device_put(host_batch, sharding)
    return jax.make_array_from_process_local_data(sharding, host_batch)
