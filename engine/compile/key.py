"""What a compiled program depends on: a stored one is loaded only if all of this is equal.

- Its StableHLO, which has the shapes, the data types, the shardings, the constants, the donated arguments, the random
  number generator and the precision of products. The settings of JAX that change these change the text.
- The names of its arguments, and which of them it reads: StableHLO has the number and the shapes of those only.
- The devices: their kind, their number, their order, and for TPUs their places in the torus.
- The versions of the engine, of JAX and of the compiler: libtpu, the plugin for GPUs, or on CPUs jaxlib with the
  machine type and the instruction sets of the CPU.
- The options of XLA: the `compiler_options` of the program, XLA_FLAGS (also as a file), LIBTPU_INIT_ARGS, and the
  settings of JAX that it passes to the compiler without a trace in StableHLO (SETTINGS).

Settings that act when a program runs are left out, such as the memory that JAX allocates or the kind of CPU
collectives.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from engine import __version__
from engine.base.types import Device
from engine.compile import cache
from engine.compile.options import Value

SETTINGS = (
    "jax_optimization_level",
    "jax_memory_fitting_level",
    "jax_disable_most_optimizations",
    "jax_compiler_enable_remat_pass",
    "jax_use_shardy_partitioner",
    "jax_xla_profile_version",
    "jax_enable_pgle",
)
"""Settings of JAX that its `get_compile_options` (jax/_src/compiler.py) passes to the compiler next to StableHLO."""
_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt", "jax-rocm7-pjrt")}
# Flags of XLA that do not change a program.
_NO_EFFECT = ("--xla_dump", "--xla_force_host_platform_device_count", "--xla_gpu_cuda_data_dir")
_LOCATIONS = re.compile(r"(?<=\\22debug_locations\\22: )\\22[^\\]*\\22")


def describe_program(lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping[str, Value]) -> dict[str, str]:
    """Returns all that a compiled program depends on, by name.

    Args:
        lowered: the program.
        mesh: its devices.
        options: the `compiler_options` of its `jax.jit`.
    """
    devices = list(mesh.devices.flat)
    first = devices[0]
    processes = len({d.process_index for d in devices})
    return {
        "engine": __version__,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "compiler": _compiler(first.platform),
        "options": " ".join([*flags(os.environ), *(f"{name}={options[name]}" for name in sorted(options))]) or "none",
        "settings": " ".join(f"{name}={jax.config.values[name]}" for name in SETTINGS if name in jax.config.values),
        "devices": f"{len(devices)} x {first.device_kind} in {processes} process{'es' * (processes > 1)}",
        "order of devices": digest(repr(places(devices)).encode())[:16],
        "program": digest((without_locations(lowered.as_text()) + repr(_arguments(lowered))).encode()),
    }


def _arguments(lowered: jax.stages.Lowered) -> tuple[list[str], list[str]]:
    """Returns the names of all arguments of a program, and of those that it reads: JAX drops the others."""
    every = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(lowered.args_info)]
    module: Any = lowered.compiler_ir()
    main = next(operation for operation in module.body.operations if operation.attributes["sym_name"].value == "main")
    return every, [str(argument.location) for argument in main.arguments]


def places(devices: Sequence[Device]) -> list[tuple[object, ...]]:
    """Returns for each device its number and process; for a TPU also its slice and its place in the torus.

    Absent devices lack the number of a single slice, and absent GPUs have other slices than those that are present.
    """
    more = ("slice_index", "coords", "core_on_chip") if devices[0].platform == "tpu" else ()
    return [tuple(_plain(getattr(device, name, 0)) for name in ("id", "process_index", *more)) for device in devices]


def _plain(value: int | Sequence[int] | None) -> object:
    return tuple(value) if isinstance(value, Sequence) else value or 0


def _compiler(platform: str) -> str:
    if platform == "cpu":
        return cache.key()
    for package in _COMPILERS.get(platform, ()):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            pass
    return "unknown"


def flags(environment: Mapping[str, str]) -> list[str]:
    """Returns the flags of XLA and of libtpu; of several with one name, the last one counts."""
    text = environment.get("XLA_FLAGS", "")
    if text and not text.lstrip().startswith("-"):  # XLA reads the flags from this file
        with contextlib.suppress(OSError):
            text = Path(text.strip()).read_text()
    found: dict[str, str] = {}
    for flag in (*text.split(), *environment.get("LIBTPU_INIT_ARGS", "").split()):
        if not flag.startswith(_NO_EFFECT):
            found[flag.partition("=")[0]] = flag
    return sorted(found.values())


def digest(content: bytes) -> str:
    """Returns the hash of bytes as text."""
    return hashlib.sha256(content).hexdigest()


def without_locations(stablehlo: str) -> str:
    """Returns StableHLO without the paths of source files, which Pallas kernels for TPUs contain."""
    return _LOCATIONS.sub("", stablehlo)
