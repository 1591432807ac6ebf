"""Devices of machines that are absent, for which XLA compiles ahead of time.

TPUs need the package libtpu; GPUs need the plugin and PJRT of jax for CUDA 13, and cuDNN. The extra `aot` has all.
"""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence

from engine.types import Device

PACKAGES: Mapping[str, Sequence[str]] = {
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cudnn"),
}
"""Platform -> the modules that its compiler needs."""

_FORMS = {"tpu": r"\w+:\d+(x\d+)+", "gpu": r"\d+x\d+"}

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA must know of a GPU to compile for it (`xla.gpu.GpuTargetConfig` as text)."""

# libtpu asks the metadata server of Google Cloud for these, and waits where there is none.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def missing(platform: str) -> str:
    """Returns the names of the modules that compiling for a platform needs and that are missing; "" if none is."""
    return ", ".join(name for name in PACKAGES[platform] if not _found(name))


def devices(target: str) -> list[Device]:
    """Returns the devices of a target. Call it before JAX starts its own devices.

    Args:
        target: `tpu:v5e:4x4` (generation and topology), or `gpu:1x8` (hosts, and GPUs of a host, one process each).

    Raises:
        ModuleNotFoundError: a package of the extra `aot` is missing.
        ValueError: the target is not of one of these forms.
    """
    platform, _, rest = target.partition(":")
    if not re.fullmatch(_FORMS.get(platform, "(?!)"), rest):
        raise ValueError(f"Target {target!r} is not of the form tpu:v5e:4x4 or gpu:1x8.")
    if names := missing(platform):
        raise ModuleNotFoundError(f"Compiling for {target} needs {names}. Install the extra aot of convoy-engine.")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    if platform == "tpu":
        return list(topologies.get_topology_desc(rest, "tpu").devices)
    hosts, gpus = rest.split("x")
    description = topologies.get_topology_desc(platform="cuda", topology=f"1x{hosts}x{gpus}", target_config=H100)
    return list(description.devices)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
