"""`convoy doctor`: what a process finds on its machine, to explain why a run does not start or is slow.

It prints no value of an environment variable, which may be a secret.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine.cluster import group
from engine.cluster.cluster_detection import Detection

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu", "jax-cuda12-plugin")
ROUNDS = 10  # of the collective
NAMED = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_COMPILATION_CACHE_DIR",
    "NCCL_DEBUG",
    "JAX_MTLS_CERT_FILE",
)


def before_joining(detection: Detection) -> Iterator[str]:
    """The lines that need no other process and no device."""
    yield str(detection)
    yield from (f"  warning: {note}" for note in detection.notes)
    versions = {name: _version(name) for name in PACKAGES}
    yield f"python: {platform.python_version()}, {sys.executable}"
    yield "packages: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield f"host: {socket.gethostname()}, {_cores()} cores for this process, {_memory()}"
    free = shutil.disk_usage(".").free / 2**30
    yield f"disk: {free:.1f} GiB free in {os.getcwd()}"
    if names := [name for name in NAMED if os.environ.get(name)]:
        yield f"set: {', '.join(names)}"


def after_joining() -> Iterator[str]:
    """The lines about devices, and the collective that all processes take part in."""
    import jax

    local = jax.local_devices()
    kinds = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in local}))
    yield f"devices: {len(local)} here of {jax.device_count()}: {kinds}"
    for device in local:
        if stats := device.memory_stats():
            used, limit = stats.get("bytes_in_use", 0) / 2**30, stats.get("bytes_limit", 0) / 2**30
            yield f"  {device}: {used:.1f} of {limit:.1f} GiB in use"
    yield f"collective: {_round_trip()}"
    if group.count() > 1:
        yield f"process {group.index()}: all {group.count()} processes answer"


def _round_trip() -> str:
    """A sum over all devices, checked, with its time from the call to the result on the host."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    spread, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    ones = jax.jit(lambda: jnp.ones(count), out_shardings=spread)()
    add = jax.jit(jnp.sum, out_shardings=whole)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        total = float(add(ones))
        times.append(time.perf_counter() - start)
        if total != count:
            return f"WRONG: the sum of a one from each of {count} devices is {total:g}"
    devices = f"{count} device" + ("s" if count > 1 else "")
    return f"{devices}, {sorted(times[1:])[ROUNDS // 2] * 1e3:.2f} ms for a sum (median of {ROUNDS})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Of the host, as Linux tells it, and the limit of the container where there is one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "memory unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    text = f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB of memory free"
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return text if limit == "max" else f"{text}, limit of the container {int(limit) / 2**30:.1f} GiB"
