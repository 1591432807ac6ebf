"""How programs are compiled on each platform: options of XLA, and loops and branches of the train step.

`compiler.options` of a config overrides the options. The numbers are of programs that were compiled ahead of time
(`benchmarks/aot`).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.base.errors import ConfigError

type Value = bool | int | float | str


class Option(NamedTuple):
    """A value of an option, and why it is not XLA's own."""

    value: Value
    reason: str


OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "gpu": {
        "xla_gpu_reduce_scatter_combine_threshold_bytes": Option(
            1 << 18,
            "XLA combines the gradients of all weights of a layer otherwise, and starts to reduce them after the last "
            "of them is computed. Separate ones overlap with the next product. It counts bytes of a device's part.",
        ),
    },
    "tpu": {
        "xla_tpu_enable_async_all_to_all": Option(
            True, "XLA waits for an all-to-all otherwise, such as that of an embedding whose features are split."
        ),
    },
}
"""Platform -> option -> value and reason."""
PREFIXES: Mapping[str, tuple[str, ...]] = {"cpu": ("xla_cpu_",), "gpu": ("xla_gpu_",), "tpu": ("xla_tpu_", "xla_jf_")}
"""Platform -> first letters of the options that it alone has."""
MAX_UNROLLED_STEPS = 128
"""Largest product of microbatches and steps per dispatch that may be unrolled. Each takes 2.6 s and 38 MiB to compile
in the CNN of configs/fashion_mnist.py."""


def compiler_options(platform: str, chosen: Mapping[str, Value | None]) -> dict[str, Value]:
    """Returns option -> value for a platform.

    Args:
        platform: cpu, gpu or tpu.
        chosen: option -> value of the config; None leaves an option to XLA. Options of other platforms are ignored, so
            that a config for TPUs also runs on a CPU.
    """
    others = tuple(prefix for name, prefixes in PREFIXES.items() if name != platform for prefix in prefixes)
    table = {name: option.value for name, option in OPTIONS.get(platform, {}).items()}
    options = {**table, **{name: value for name, value in chosen.items() if not name.startswith(others)}}
    return {name: value for name, value in options.items() if value is not None}


def step_options(options: Mapping[str, Value], packs: bool) -> dict[str, Value] | None:
    """Returns the options of a train step; None for XLA's own.

    Args:
        options: those of its platform and config.
        packs: small arrays are parts of vectors (`training/packing.py`). XLA would copy the gradients that the devices
            sum together into one array, and each sum out of it. NCCL also sums several arrays in one kernel, and the
            vectors read the sums where they are.
    """
    kept = {"xla_disable_hlo_passes": "all-reduce-contiguous"} if packs else {}
    return {**kept, **options} or None


def check_options(mesh: Mesh, options: Mapping[str, Value]) -> None:
    """Compiles a program of one number with these options.

    Raises:
        ConfigError: XLA does not know an option, or rejects its value.
    """
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    lowered = jax.jit(jnp.negative, compiler_options=dict(options)).lower(number)
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        problem = re.search(r"No such compile option: '.*?'|While setting option .*", str(error))
        if not problem:
            raise
        raise ConfigError(
            f"compiler.options: XLA for {mesh.devices.flat[0].platform} reports: {problem[0].rstrip('.')}. Correct or "
            "remove this option; None leaves it to XLA."
        ) from None


class StepControlFlow(NamedTuple):
    """How a train step is built."""

    unroll: bool  # unroll microbatches and steps instead of scanning
    branch: bool  # skip an update by a branch instead of a selection of each value


def step_control_flow(platform: str, has_convolution: bool) -> StepControlFlow:
    """Returns how to build the train step of a model.

    On a CPU a loop around a convolution is 10 times slower and rounds differently. Without convolutions a branch is
    faster on a CPU: selecting each value of the optimizer state costs 5 % of a small step.
    """
    on_cpu = platform == "cpu"
    return StepControlFlow(unroll=on_cpu and has_convolution, branch=on_cpu and not has_convolution)
