"""Divides this machine among the runs of a sweep: cores, and GPUs or TPU chips.

JAX is not imported: the driver must not reserve memory on the devices of its runs.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import ConfigError
from engine.base.host import host_memory, usable_cores

RUN_BYTES = 2 << 30
"""Memory that a small run needs on a CPU: a process of JAX, its programs and its data."""
_NVIDIA, _DEV = Path("/proc/driver/nvidia/gpus"), Path("/dev")


@dataclass(frozen=True)
class Share:
    """What one run at a time may use."""

    cores: frozenset[int]
    variables: Mapping[str, str]
    """Environment variables that select its devices."""
    memory: int | None
    """Bytes of host memory; None: not known."""


def shares(parallel: int | None, devices: int | None) -> list[Share]:
    """Returns the equal share of each run that runs at the same time.

    Args:
        parallel: number of shares; None: as many as there are devices, or on a CPU one per core while memory suffices.
        devices: GPUs or TPU chips of a share; None: all of them divided, at least one.

    Raises:
        ConfigError: there are not so many cores or devices.
    """
    names, chips = _gpus(), _tpu_chips()
    found = names or chips
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cores()))
    memory = host_memory()
    if devices is not None and not found:
        raise ConfigError(f"--devices-per-trial={devices}: this machine has no GPU or TPU. Leave the flag out.")
    if devices is not None and not 1 <= devices <= len(found):
        raise ConfigError(f"--devices-per-trial={devices}: allowed is 1 to {len(found)}, the devices of this machine.")
    if parallel is None:
        by_memory = max(1, memory.bytes // RUN_BYTES) if memory else len(cores)
        parallel = min(len(cores), len(found) // (devices or 1) if found else by_memory)
    if parallel < 1 or parallel > len(cores):
        raise ConfigError(f"--parallel={parallel}: allowed is 1 to {len(cores)}, the cores of this machine.")
    each = devices or max(1, len(found) // parallel)
    if found and each * parallel > len(found):
        raise ConfigError(
            f"--parallel={parallel} with {each} device{'s' * (each > 1)} each: this machine has {len(found)}. Use "
            f"--parallel={max(1, len(found) // each)}."
        )
    result = []
    for n in range(parallel):
        own = cores[n * len(cores) // parallel : (n + 1) * len(cores) // parallel]
        taken = found[n * each : (n + 1) * each]
        variables = _gpu_variables(taken) if names else _tpu_variables(taken, len(found)) if chips else {}
        result.append(Share(frozenset(own), variables, memory.bytes // parallel if memory else None))
    return result


def _gpus() -> list[str]:
    """Returns the names of the GPUs that runs may use, as in CUDA_VISIBLE_DEVICES."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(n) for n in range(len(list(_NVIDIA.iterdir())))] if _NVIDIA.is_dir() else []


def _tpu_chips() -> list[str]:
    """Returns the indices of the TPU chips of this host."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("TPU_VISIBLE_CHIPS") or os.environ.get("TPU_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    if not _has_libtpu():
        return []
    return [str(n) for n, _ in enumerate([*_DEV.glob("accel[0-9]*"), *_DEV.glob("vfio/[0-9]*")])]


def _has_libtpu() -> bool:
    """Whether JAX can use TPUs. Other devices than TPU chips have files in /dev/vfio, too."""
    return importlib.util.find_spec("libtpu") is not None


def _gpu_variables(names: list[str]) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _tpu_variables(chips: list[str], count: int) -> dict[str, str]:
    """Returns the variables with which libtpu of a process takes only these chips of its host."""
    if len(chips) == count:
        return {}
    bounds = f"1,{len(chips)},1"
    return {
        "TPU_VISIBLE_CHIPS": ",".join(chips),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
