"""Measures the rates of the devices at hand: products, memory, collectives and dispatches.

All devices work at once, since those of a CPU share its cores. The rates are stored in the user's cache directory, and
every later plan for these devices takes them from there.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.cluster.cores import usable_cores
from engine.config.atomic_file import replacing
from engine.planning.machine import Machine
from engine.training.compile_cache import key, user_directory
from engine.types import Device

REPEATS = 5
PRODUCT = {"cpu": 384, "gpu": 8192, "tpu": 8192}
"""Platform -> rows and columns of the factors of a product."""
ELEMENTS = {"cpu": 2**21, "gpu": 2**28, "tpu": 2**28}
"""Platform -> float32 numbers of a device that are read and written."""
SUMS = {"cpu": (2**10, 2**20), "gpu": (2**12, 2**26), "tpu": (2**12, 2**26)}
"""Platform -> float32 numbers of a small and of a large sum over all devices."""


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
        with replacing(target, target.with_suffix(f".{os.getpid()}.new")) as file:
            file.write(json.dumps(rates, indent=1).encode())
    except (OSError, RuntimeError) as error:
        on_progress(f"warning: the rates are not stored: {error}")
        return with_rates(machine, rates, "measured, not stored")
    on_progress(f"stored the rates in {target}")
    return with_rates(machine, rates, f"measured, {target}")


def stored(machine: Machine, devices: Sequence[Device]) -> Machine:
    """Returns the machine with the stored rates of its devices, or as it is if there are none."""
    try:
        found = path(devices)
        return with_rates(machine, json.loads(found.read_text()), f"measured, {found}")
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return machine


def with_rates(machine: Machine, rates: dict[str, Any], source: str) -> Machine:
    """Returns a machine with measured rates."""
    names = ("bf16", "f32", "bandwidth", "link", "latency", "dispatch")
    measured: dict[str, Any] = {name: float(rates[name]) for name in names}
    if not all(rate > 0 or (rate == 0 and name == "latency") for name, rate in measured.items()):
        raise ValueError(f"rates that are not positive: {measured}")
    return dataclasses.replace(machine, **measured, source=source, margin=0.3)


def measure(devices: Sequence[Device], on_progress: Callable[[str], None]) -> dict[str, float]:
    """Returns the rates of one of these devices while all of them work."""
    mesh = Mesh(np.asarray(devices), ("all",))
    platform, count = devices[0].platform, len(devices)
    split = NamedSharding(mesh, P("all"))
    rates: dict[str, float] = {}
    size = PRODUCT[platform]
    for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
        on_progress(f"measuring products in {jnp.dtype(dtype).name}")
        x = jax.device_put(jnp.ones((count, size, size), dtype), split)
        rates[name] = 2 * size**3 / _seconds(jax.jit(lambda x: x @ x, out_shardings=split), x)
    on_progress("measuring memory")
    x = jax.device_put(jnp.ones((count, ELEMENTS[platform])), split)
    rates["bandwidth"] = 2 * 4 * ELEMENTS[platform] / _seconds(jax.jit(lambda x: x * 1.5, out_shardings=split), x)
    on_progress("measuring dispatches and sums over the devices")
    rates["dispatch"] = _seconds(
        jax.jit(lambda x: x + 1.0, out_shardings=split), jax.device_put(jnp.ones(count), split)
    )
    whole = NamedSharding(mesh, P())
    times = []
    for elements in SUMS[platform]:
        x = jax.device_put(jnp.ones((count, elements)), split)
        total = _seconds(jax.jit(lambda x: x.sum(0), out_shardings=whole), x)
        times.append(max(total - rates["dispatch"], 1e-7))
    sent = 2 * (count - 1) / count * 4 * (SUMS[platform][1] - SUMS[platform][0])
    rates["link"] = sent / max(times[1] - times[0], 1e-7) if count > 1 else rates["bandwidth"]
    rates["latency"] = times[0] if count > 1 else 0.0
    return rates


def _seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Returns the median time of a call."""
    found = jax.block_until_ready(function(x))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(3):
            found = function(x)
        jax.block_until_ready(found)
        times.append((time.perf_counter() - start) / 3)
    return float(np.median(times))
