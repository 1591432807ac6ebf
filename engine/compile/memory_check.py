"""Refuses sizes that cannot fit into memory, before anything of that size is allocated.

A run that does not fit is otherwise killed by the kernel (137), without a reason, at every restart. The estimate is a
lower bound: batches and the train state, without activations, gradients and libraries. So it refuses no run that fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding

from engine.base.errors import ConfigError
from engine.base.host import host_memory, usable_cores
from engine.base.types import PyTree
from engine.config.schema import Data, Train
from engine.data.prefetch import least_ahead
from engine.parallel.memory import HOST_MEMORY, device_memory_limit
from engine.parallel.mesh import batch_sharding

WARN_SHARE = 0.8  # share of the memory; beyond it, activations and libraries hardly fit
# Row numbers and addresses (int64) and weights (float32) of the rows of a batch, see `data/batches.py`.
ROW_BYTES = 20


@dataclass(frozen=True)
class BatchMemory:
    """The batches that are in memory at the same time."""

    field: str
    """Config field of the batch size."""
    size: int
    """Rows of a global batch."""
    example: PyTree
    """One example, as a pytree of jax.ShapeDtypeStruct."""
    on_host: int
    """Number of batches in host memory."""
    on_device: int
    """Number of batches in device memory."""
    advice: str
    """What to use instead: settings that shrink them."""

    @property
    def example_bytes(self) -> int:
        """Bytes of an example."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self.example))


def training_batches(train: Train, data: Data, example: PyTree, total_steps: int) -> BatchMemory:
    """Returns the batches of a training run: those of a dispatch, and those that are read ahead."""
    k = train.steps_per_dispatch
    smaller = ["a smaller train.global_batch_size"]
    smaller += [f"train.steps_per_dispatch (here {k})"] if k > 1 else []
    smaller += [f"data.prefetch (here {data.prefetch})"] if least_ahead(data.prefetch) > 1 else []
    return BatchMemory(
        field="train.global_batch_size",
        size=train.global_batch_size,
        example=example,
        on_host=min(total_steps, k + _read_ahead(data, k)),
        on_device=min(total_steps, k),
        advice=" or ".join(smaller),
    )


def evaluation_batches(name: str, data: Data, example: PyTree, batch_size: int, examples: int) -> BatchMemory:
    """Returns the batches of a named evaluation of so many examples."""
    field, count = f"evaluations.{name}.batch_size", min(-(-examples // batch_size), 1 + _read_ahead(data, 1))
    prefetch = f" or evaluations.{name}.data.prefetch (here {data.prefetch})" if data.prefetch and count > 1 else ""
    return BatchMemory(
        field=field,
        size=batch_size,
        example=example,
        on_host=count,
        on_device=1,
        advice=f"a smaller {field}{prefetch}",
    )


def _read_ahead(data: Data, k: int) -> int:
    """Returns the number of batches that the reader makes ahead (`data/reader.py`)."""
    readers = usable_cores() if data.workers == "auto" else int(data.workers or data.threads)
    return max(least_ahead(data.prefetch) * k, readers)


@dataclass(frozen=True)
class _Part:
    """Something that takes memory."""

    field: str
    text: str
    bytes: int
    advice: str


def check_memory(batches: BatchMemory, mesh: Mesh, state: PyTree) -> list[str]:
    """Checks that batches and the train state fit into host memory and into the memory of each device.

    Where the system does not state a limit, nothing is checked.

    Args:
        batches: the batches.
        mesh: the devices, over which their rows are split.
        state: the train state, as a pytree of jax.ShapeDtypeStruct with shardings.

    Returns:
        Warnings, if they leave little memory.

    Raises:
        ConfigError: they cannot fit.
    """
    warnings, sharding, on_cpu = [], batch_sharding(mesh), _on_cpu(mesh)
    if (host := host_memory()) is not None:
        in_host_memory = jax.tree.leaves(state) if on_cpu else _offloaded(state)
        parts = [_host_part(batches, sharding), _state_part(sum(map(_host_bytes, in_host_memory)))]
        warnings += _check("host memory", parts, host.bytes, str(host))
    limit = None if on_cpu else device_memory_limit(mesh)
    if limit is not None:
        in_device_memory = sum(map(_shard_bytes, jax.tree.leaves(state))) - sum(map(_shard_bytes, _offloaded(state)))
        parts = [_device_part(batches, sharding), _state_part(in_device_memory)]
        warnings += _check("memory of each device", parts, limit, f"{_gib(limit)} (each device)")
    return warnings


def _check(where: str, parts: Sequence[_Part], limit: int, limit_text: str) -> list[str]:
    needed = sum(part.bytes for part in parts)
    if needed <= WARN_SHARE * limit:
        return []
    largest = max(parts, key=lambda part: part.bytes)
    texts = ", ".join(f"{_gib(part.bytes)} for {part.text}" for part in parts)
    found = f"{largest.field}: the run needs at least {_gib(needed)} of {where} ({texts})"
    if needed > limit:
        raise ConfigError(f"{found}. There are {limit_text}. Use {largest.advice}.")
    return [f"{found}, of {limit_text}; activations and gradients need more. If it runs out, use {largest.advice}."]


def _host_part(batches: BatchMemory, sharding: NamedSharding) -> _Part:
    spans = {index[0].indices(batches.size)[:2] for index in _indices(batches, sharding) if index}
    rows = sum(stop - start for start, stop in spans)
    size = rows * (batches.on_host * batches.example_bytes + ROW_BYTES)
    here = "" if rows == batches.size else f", {rows:,} of them in this process"
    text = f"{_batches(batches.on_host)} of {batches.size:,} rows of {batches.example_bytes:,} bytes{here}"
    return _Part(batches.field, text, size, batches.advice)


def _device_part(batches: BatchMemory, sharding: NamedSharding) -> _Part:
    rows = sharding.shard_shape((batches.size,))[0]
    text = f"{_batches(batches.on_device)} of {rows:,} rows of {batches.example_bytes:,} bytes on each device"
    return _Part(batches.field, text, batches.on_device * rows * batches.example_bytes, batches.advice)


def _state_part(size: int) -> _Part:
    advice = "a smaller model, or split its state over more devices (mesh.fsdp)"
    return _Part("task", "parameters, optimizer state and model state", size, advice)


def _indices(batches: BatchMemory, sharding: NamedSharding) -> Sequence[tuple[slice, ...] | None]:
    return [*sharding.addressable_devices_indices_map((batches.size,)).values()]


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _offloaded(state: PyTree) -> list[jax.ShapeDtypeStruct]:
    return [x for x in jax.tree.leaves(state) if x.sharding.memory_kind == HOST_MEMORY]


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of an array on each device."""
    assert x.sharding is not None
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _host_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of an array on all devices of this process."""
    assert x.sharding is not None
    return _shard_bytes(x) * len(x.sharding.addressable_devices)


def _batches(count: int) -> str:
    return f"{count:,} batch{'es' * (count > 1)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
