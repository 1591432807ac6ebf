"""Turns an out-of-memory error, of a device or of the host, into advice on how to shrink the run."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from engine.base.errors import ConvoyError, first_line
from engine.base.host import ADVICE
from engine.config.schema import MeshSpec, Train
from engine.config.setting import AUTO

_OUT_OF_MEMORY = re.compile(r"(?:^RESOURCE_EXHAUSTED: |\b(?=(?:[Rr]an o|[Oo])ut of memory\b))(.*)")


class OutOfMemory(ConvoyError):
    """A device or this machine has not enough memory for the run."""


@contextmanager
def out_of_memory_reported(train: Train, mesh: MeshSpec) -> Iterator[None]:
    """Raises the out-of-memory errors of JAX and Python as OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        raise OutOfMemory(
            f"this machine is out of memory ({where}: {str(error) or 'no details'}). Read less at once: {ADVICE}."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        match = _OUT_OF_MEMORY.search(first_line(error))
        if match is None:
            raise
        raise OutOfMemory(
            f"a device is out of memory ({match[1].rstrip('.')}). To shrink the run: "
            f"{'; '.join(smaller(train, mesh))}. "
            "convoy explain prints the bytes of parameters and optimizer on each device."
        ) from error


def smaller(train: Train, mesh: MeshSpec) -> list[str]:
    """Returns settings that need less device memory, the cheapest first, without those that the config has already."""
    devices, advice = jax.device_count(), []
    if AUTO in (train.global_batch_size, train.accumulate, train.remat):
        advice.append("a smaller train.memory_gib, which auto fills")
    elif train.global_batch_size % (microbatches := 2 * train.accumulate) == 0:
        advice.append(f"train.accumulate={microbatches}, which splits the same batch into more microbatches")
    if train.remat != "full":
        advice.append("train.remat=full, where the model has a stack of layers")
    if train.precision == "float32":
        advice.append("train.precision=bfloat16")
    if devices > 1 and mesh.fsdp in (None, 1):
        advice.append(f"mesh.fsdp=-1, which splits parameters and optimizer over the {devices} devices")
    if not train.offload_optimizer and jax.default_backend() != "cpu":
        advice.append("train.offload_optimizer=true")
    number = train.global_batch_size
    size = "" if number in (AUTO, 1) else f"a smaller train.global_batch_size than {number}, or "
    return [*advice, f"{size}a smaller model"]
