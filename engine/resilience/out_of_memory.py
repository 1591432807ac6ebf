"""Turns an out-of-memory error, of a device or of the host, into advice on how to shrink the run."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from engine.config.errors import ConvoyError, first_line
from engine.config.schema import MeshSpec, Train

_SIGN = re.compile(r"(?:^RESOURCE_EXHAUSTED: |\b(?=(?:[Rr]an o|[Oo])ut of memory\b))(.*)")


class OutOfMemory(ConvoyError):
    """A device or this machine cannot hold what the run needs."""


@contextmanager
def out_of_memory_reported(train: Train, mesh: MeshSpec) -> Iterator[None]:
    """Turns the out-of-memory errors of JAX and Python into an OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        raise OutOfMemory(
            f"this machine's memory does not suffice ({where}: {str(error) or 'no more is given'}). Read less at once: "
            "a smaller train.global_batch_size, evaluations.NAME.batch_size, data.prefetch or data.workers."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        sign = _SIGN.search(first_line(error))
        if sign is None:
            raise
        raise OutOfMemory(
            f"a device's memory does not suffice ({sign[1].rstrip('.')}). What makes a run smaller: "
            f"{'; '.join(smaller(train, mesh))}. "
            "convoy explain prints the bytes of parameters and optimizer on each device."
        ) from error


def smaller(train: Train, mesh: MeshSpec) -> list[str]:
    """Returns settings that make a device hold less, the cheapest first, without those that the config has already."""
    devices, ways = jax.device_count(), []
    if train.global_batch_size % (parts := 2 * train.accumulate) == 0:
        ways.append(f"train.accumulate={parts}, which takes the same batch in more parts")
    if train.remat != "full":
        ways.append("train.remat=full, where the model has a stack of layers")
    if train.precision == "float32":
        ways.append("train.precision=bfloat16")
    if devices > 1 and mesh.fsdp in (None, 1):
        ways.append(f"mesh.fsdp=-1, which splits parameters and optimizer over the {devices} devices")
    if not train.offload_optimizer and jax.default_backend() != "cpu":
        ways.append("train.offload_optimizer=true")
    return [*ways, f"a smaller train.global_batch_size than {train.global_batch_size}, or a smaller model"]
