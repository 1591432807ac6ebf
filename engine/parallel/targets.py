"""Targets: hardware by name and topology, present or absent, such as `v5p:4x4x8`, `v5e:16x16*2` and `h100:32x8`.

XLA compiles for a target that is absent. A TPU needs the package libtpu; a GPU needs the plugin and PJRT of jax for
CUDA 13, and cuDNN. The extra `aot` has all. Parsing a target and its published numbers need none of them.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from engine.base.errors import ConfigError, did_you_mean, first_line
from engine.base.types import Device
from engine.config import hardware
from engine.config.setting import MAX_AXIS

LOCAL = "local"
FORMS = "v5p:4x4x8 (a TPU and its topology), v5e:16x16*2 (2 slices), h100:32x8 (hosts x GPUs of a host), local"
PACKAGES: Mapping[str, Sequence[str]] = {
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cudnn"),
}
"""Platform -> the modules that its compiler needs."""
KINDS: Mapping[str, str] = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
    "a100": "NVIDIA A100-SXM4-80GB",
    "a100-40": "NVIDIA A100-SXM4-40GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
}
"""Name in a target -> kind of the device, `device_kind` of JAX."""
DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
"""TPU -> dimensions of its topology."""
_CORES = {"tpu7x": 2}  # devices of a chip, where there are several
_PARTS_OF_A_CUBE = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))

# What XLA must know of a GPU to compile for it: cores, their memory, compute capability, and memory, as in
# xla/backends/gpu/target_config/specs of OpenXLA.
_AMPERE = "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 fpus_per_core: 64 core_count: 108"
_HOPPER = "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 fpus_per_core: 128 core_count: 132"
_BLACKWELL = "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 fpus_per_core: 128 core_count: 148"
_A100 = f"{_AMPERE} l2_cache_size: 41943040 clock_rate_ghz: 1.41 cuda_compute_capability {{ major: 8 }}"
_H100 = f"{_HOPPER} l2_cache_size: 52428800 clock_rate_ghz: 1.98 cuda_compute_capability {{ major: 9 }}"
_B200 = f"{_BLACKWELL} l2_cache_size: 132644864 clock_rate_ghz: 1.965 cuda_compute_capability {{ major: 10 }}"
_GPUS: Mapping[str, str] = {
    "a100": f"{_A100} memory_bandwidth: 2039040000000 device_memory_size: 85100068864",
    "a100-40": f"{_A100} memory_bandwidth: 1555200000000 device_memory_size: 42331013120",
    "h100": f"{_H100} memory_bandwidth: 3352320000000 device_memory_size: 84942979072",
    "h200": f"{_H100} memory_bandwidth: 4800000000000 device_memory_size: 151397597184",
    "b200": f"{_B200} memory_bandwidth: 7672320000000 device_memory_size: 191514411008",
}
_ANY_GPU = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048 "
    "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536"
)

# libtpu asks the metadata server of Google Cloud for these, and waits where there is none.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class HardwareTarget:
    """Hardware that is absent.

    Attributes:
        text: the target as the user wrote it.
        name: key of KINDS.
        shape: the topology of a slice of TPUs, or (hosts, GPUs of a host).
        slices: groups of devices on one fast network: slices of TPUs, or hosts of GPUs.
    """

    text: str
    name: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def kind(self) -> str:
        """Kind of the devices, `device_kind` of JAX."""
        return KINDS[self.name]

    @property
    def platform(self) -> str:
        """Platform of the devices: tpu or gpu."""
        return "tpu" if self.name in DIMENSIONS else "gpu"

    @property
    def hardware(self) -> hardware.Hardware:
        """Published numbers of a device."""
        found = hardware.find(self.kind)
        assert found is not None
        return found

    @property
    def count(self) -> int:
        """Number of JAX devices."""
        return math.prod(self.shape) * (self.slices if self.platform == "tpu" else 1) * _CORES.get(self.name, 1)

    def devices(self) -> list[Device]:
        """Returns the devices, for which XLA compiles. Call it before JAX starts its own devices.

        Raises:
            ConfigError: a package of the extra `aot` is missing, or its compiler rejects the topology.
        """
        if names := missing(self.platform):
            from engine.base.extras import install_command

            raise ConfigError(
                f"Compiling for {self.text} needs {names}. Install the extra aot: {install_command('aot')}."
            )
        keep_to_cpu()
        try:
            return list(_topology(self))
        except Exception as error:  # the compiler raises C++ errors of any type
            raise ConfigError(f"{self.text}: the compiler has no such topology: {first_line(error)}") from error


def parse(text: str) -> HardwareTarget | None:
    """Returns the target of `--hardware`; None for `local`, the devices of this process.

    Raises:
        ConfigError: the text is no target.
    """
    if text == LOCAL:
        return None
    name, _, rest = text.strip().lower().partition(":")
    if name not in KINDS:
        raise ConfigError(
            f"--hardware={text}: there is no hardware {name!r}.{did_you_mean(name, KINDS)} "
            f"Hardware: {', '.join(KINDS)}. Forms: {FORMS}."
        )
    match = re.fullmatch(r"(\d+(?:x\d+)*)(?:\*(\d+))?", rest)
    shape = tuple(int(n) for n in match[1].split("x")) if match else ()
    wanted = DIMENSIONS.get(name, 2)
    slices = int(match[2] or 1) if match else 1
    has_shape = len(shape) == wanted and all(shape)
    has_slices = slices >= 1 if name in DIMENSIONS else slices == 1  # only TPUs have slices
    if not has_shape or not has_slices:
        form = f"{name}:{'x'.join('4' * wanted)}, or with slices *2" if name in DIMENSIONS else f"{name}:HOSTSxGPUS"
        raise ConfigError(f"--hardware={text}: found {rest!r} after {name}. Write {form}. Forms: {FORMS}.")
    target = HardwareTarget(text, name, shape, slices if name in DIMENSIONS else math.prod(shape[:1]))
    _check_topology(target)
    if target.count > MAX_AXIS:
        raise ConfigError(f"--hardware={text}: found {target.count:,} devices. Allowed are at most {MAX_AXIS:,}.")
    return target


def _check_topology(target: HardwareTarget) -> None:
    """Raises ConfigError if slices have no such topology; hosts of GPUs have any."""
    if target.platform != "tpu" or _is_topology(target.shape):
        return
    chips, dimensions = math.prod(target.shape), len(target.shape)
    sizes = (1, 2, 4, 8, 16) if dimensions == 2 else (1, 2, *range(4, 33, 4))
    known = sorted(filter(_is_topology, itertools.combinations_with_replacement(sizes, dimensions)), key=math.prod)
    below = [shape for shape in known if math.prod(shape) <= chips][-1:]
    above = [shape for shape in known if math.prod(shape) >= chips][:1]
    nearest = dict.fromkeys(f"{target.name}:{'x'.join(map(str, shape))}" for shape in (*below, *above))
    rule = "two equal powers of 2, or one twice the other, up to 16x16"
    if dimensions == 3:
        rule = "multiples of 4, or a part of 4x4x4 such as 2x2x4"
    raise ConfigError(
        f"--hardware={target.text}: {target.hardware.name} has no topology {'x'.join(map(str, target.shape))}. "
        f"Dimensions are {rule}. Nearest: {' or '.join(nearest)}."
    )


def _is_topology(shape: tuple[int, ...]) -> bool:
    """Returns whether Cloud TPU documents a topology, whose dimensions may have any order.

    The compiler accepts more, such as 1x32 and 6x16, which no slice has.
    """
    least, *_, most = sorted(shape)
    if len(shape) == 2:  # 1x1, 2x2, 2x4, 4x4, ... 16x16
        return shape == (1, 1) or (least in (2, 4, 8, 16) and most in (least, 2 * least) and most <= 16)
    return all(size % 4 == 0 for size in shape) or tuple(sorted(shape)) in _PARTS_OF_A_CUBE


def keep_to_cpu() -> None:
    """Keeps JAX from starting accelerators of this machine, which an absent target does not need.

    Where the compiler for GPUs is installed and no GPU is, JAX would print a traceback about a missing library. Call it
    before JAX starts its devices.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["JAX_PLATFORMS"] == "cpu":
        jax.config.update("jax_platforms", "cpu")  # JAX reads the variable at its import


def devices(text: str) -> list[Device]:
    """Returns the devices of a target, for which XLA compiles. Call it before JAX starts its own devices.

    Raises:
        ConfigError: the text is no target, or a package of the extra `aot` is missing.
    """
    target = parse(text)
    return list(jax.devices()) if target is None else target.devices()


def missing(platform: str) -> str:
    """Returns the names of the modules that compiling for a platform needs and that are missing; "" if none is."""
    return ", ".join(name for name in PACKAGES[platform] if not _found(name))


def _topology(target: HardwareTarget) -> Sequence[Device]:
    from jax.experimental import topologies

    shape = "x".join(map(str, target.shape))
    if target.platform == "tpu":
        more: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
        if target.name == "v4":
            more["chip_config_name"] = "megacore"  # one device for the two cores of a chip, as JAX shows real ones
        return topologies.get_topology_desc(f"{target.name}:{shape}", "tpu", **more).devices
    config = (
        f"gpu_device_info {{ {_ANY_GPU} {_GPUS[target.name]} }} "
        f'platform_name: "CUDA" device_description_str: "{target.kind}" '
        "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 minor: 0 }"  # without it no float8
    )
    return topologies.get_topology_desc(platform="cuda", topology=f"1x{shape}", target_config=config).devices


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
