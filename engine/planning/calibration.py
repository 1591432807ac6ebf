"""Measures the rates of the devices at hand: products, memory, collectives and dispatches.

All devices work at once, since those of a CPU share its cores. An operation runs many times in one program, as it does
in a step. The rates are stored in the user's cache directory, and every later plan for these devices takes them from
there.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from engine.base import json_text
from engine.base.files import replacing
from engine.base.host import usable_cores
from engine.base.types import Device
from engine.compile.cache import key, user_directory
from engine.planning.machine import MEASURED, SHARE, Machine

REPEATS = 5
LOOPS = 32
"""Executions of an operation in one program."""
PRODUCT = {"cpu": 384, "gpu": 8192, "tpu": 8192}
"""Platform -> rows and columns of the factors of a product."""
ELEMENTS = {"cpu": 2**23, "gpu": 2**28, "tpu": 2**28}
"""Platform -> float32 numbers of a device that are read and written, more than its caches hold."""
SUMS = {"cpu": (2**4, 2**20), "gpu": (2**12, 2**26), "tpu": (2**12, 2**26)}
"""Platform -> float32 numbers of a small and of a large sum over all devices."""
NEW_MEMORY = {"cpu": 10 * 2**20}
"""Platform -> float32 numbers of new memory of a device, where a step gets its memory from the operating system."""


def path(devices: Sequence[Device]) -> Path:
    """Returns the file of the rates of these devices. CPUs share it only if their model and number of cores agree.

    Raises RuntimeError if the user has no home.
    """
    kind = "".join(c if c.isalnum() else "-" for c in devices[0].device_kind)
    if devices[0].platform == "cpu":
        kind += f"-{usable_cores()}-cores-{key()}"
    return user_directory() / "planning" / f"{kind}-{len(devices)}.json"


def calibrate(
    machine: Machine, devices: Sequence[Device], on_progress: Callable[[str], None] = lambda text: None
) -> Machine:
    """Measures the rates of these devices in less than a minute, stores them, and returns the machine with them."""
    rates = measure(devices, on_progress)
    try:
        target = path(devices)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.write(json.dumps(rates, indent=1).encode())
    except (OSError, RuntimeError) as error:
        on_progress(f"warning: the rates are not stored: {error}")
        return with_rates(machine, rates, "measured, not stored")
    on_progress(f"stored the rates in {target}")
    return with_rates(machine, rates, f"measured, {target}")


def stored(
    machine: Machine, devices: Sequence[Device], on_progress: Callable[[str], None] = lambda text: None
) -> Machine:
    """Returns the machine with the stored rates of its devices, or as it is if there are none that can be used."""
    try:
        found = path(devices)
    except RuntimeError:  # this user has no home directory
        return machine
    try:
        return with_rates(machine, json_text.read(found, {str: float}), f"measured, {found}")
    except FileNotFoundError:
        return machine
    except (OSError, ValueError, KeyError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else json_text.reason(error)
        on_progress(f"warning: {found}: damaged rates ({why}), which are not used. --calibrate measures them again.")
        return machine


def with_rates(machine: Machine, rates: dict[str, Any], source: str) -> Machine:
    """Returns a machine with measured rates."""
    names = ["bf16", "f32", "bandwidth", "link", "latency", "dispatch"]
    names += ["new_memory", "array", "update"] if machine.platform == "cpu" else []
    measured: dict[str, Any] = {name: float(rates[name]) for name in names}
    shares = {name.removeprefix(SHARE): rate for name, rate in rates.items() if name.startswith(SHARE)}
    positive = (*shares.values(), *(rate for name, rate in measured.items() if name != "latency"))
    if min(positive) <= 0 or measured["latency"] < 0:
        raise ValueError(f"rates that are not positive: {measured}")
    margin = machine.margin if machine.platform == "cpu" else MEASURED
    return dataclasses.replace(machine, **measured, shares=shares, source=source, margin=margin, measured=True)


def measure(devices: Sequence[Device], on_progress: Callable[[str], None]) -> dict[str, float]:
    """Returns the rates of one of these devices while all of them work."""
    platform, count = devices[0].platform, len(devices)
    on_progress("measuring dispatches")
    probe = _Probe(devices)
    rates = {"dispatch": probe.dispatch}
    size = PRODUCT[platform]
    for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
        on_progress(f"measuring products in {jnp.dtype(dtype).name}")
        rates[name] = 2 * size**3 / probe.repeated(lambda x: x @ jnp.full_like(x, 1 / size), (size, size), dtype)
    on_progress("measuring memory")
    rates["bandwidth"] = 2 * 4 * ELEMENTS[platform] / probe.repeated(lambda x: x * 1.01, (ELEMENTS[platform],))
    if platform in NEW_MEMORY:
        elements = NEW_MEMORY[platform]
        rates["new_memory"] = probe.once(lambda x: jnp.full(elements, x[0])) / (4 * elements)
        from engine.planning import small_work

        rates |= small_work.rates(devices, rates["f32"], on_progress)
    if count == 1:
        return rates | {"link": rates["bandwidth"], "latency": 0.0}
    on_progress("measuring sums over the devices")
    small, large = (probe.repeated(lambda x: jax.lax.psum(x, "all") / count, (n,)) for n in SUMS[platform])
    sent = 2 * (count - 1) / count * 4 * (SUMS[platform][1] - SUMS[platform][0])
    return rates | {"link": sent / max(large - small, 1e-7), "latency": small}


class _Probe:
    """Times functions of an array, which all devices run at once.

    Attributes:
        dispatch: seconds of a function that does nothing.
    """

    def __init__(self, devices: Sequence[Device]):
        self.mesh = Mesh(np.asarray(devices), ("all",))
        self.dispatch = self._seconds(lambda x, _: x + 1.0, (1,), jnp.float32)

    def once(self, function: Callable[[jax.Array], jax.Array]) -> float:
        """Returns the seconds that a function of a one-element array takes."""
        return max(self._seconds(lambda x, _: function(x), (1,), jnp.float32) - self.dispatch, 1e-9)

    def repeated(
        self, function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> float:
        """Returns the seconds of a function from arrays to arrays of the same shape within a longer program."""

        def loop(x: jax.Array, times: jax.Array) -> jax.Array:  # XLA does not know its length, so it does not unroll it
            return jax.lax.fori_loop(0, times, lambda _, x: function(x), x)

        return max(self._seconds(loop, shape, dtype) - self.dispatch, 1e-9) / LOOPS

    def _seconds(
        self, function: Callable[[jax.Array, jax.Array], jax.Array], shape: tuple[int, ...], dtype: DTypeLike
    ) -> float:
        """Returns the median time of a call with an array and LOOPS."""
        split = P("all")
        run = jax.jit(jax.shard_map(function, mesh=self.mesh, in_specs=(split, P()), out_specs=split, check_vma=False))
        first, *rest = shape
        x = jnp.ones((first * self.mesh.size, *rest), dtype, device=NamedSharding(self.mesh, split))
        loops = jnp.asarray(LOOPS, device=NamedSharding(self.mesh, P()))
        jax.block_until_ready(run(x, loops))
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(run(x, loops))
            times.append(time.perf_counter() - start)
        return float(np.median(times))
