"""`convoy doctor`: prints the environment of a process, to explain why a run does not start or is slow.

Values of environment variables are never printed, since they may be secrets.
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

from engine.base.host import host_memory, usable_cores
from engine.cluster import group
from engine.cluster.cluster_detection import Detection

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu", "jax-cuda12-plugin")
ROUNDS = 10  # repetitions of the collective
VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_COMPILATION_CACHE_DIR",
    "NCCL_DEBUG",
    "JAX_MTLS_CERT_FILE",
)


def before_joining(detection: Detection) -> Iterator[str]:
    """Yields the lines that need neither another process nor a device."""
    yield str(detection)
    yield from (f"  warning: {note}" for note in detection.notes)
    versions = {name: _version(name) for name in PACKAGES}
    yield f"python: {platform.python_version()}, {sys.executable}"
    yield "packages: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield f"host: {socket.gethostname()}, {usable_cores()} cores for this process, {_memory()}"
    free = shutil.disk_usage(".").free / 2**30
    yield f"disk: {free:.1f} GiB free in {os.getcwd()}"
    if names := [name for name in VARIABLES if os.environ.get(name)]:
        yield f"variables set: {', '.join(names)}"


def after_joining() -> Iterator[str]:
    """Yields the lines about devices, and runs a collective over all processes."""
    import jax

    local = jax.local_devices()
    kinds = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in local}))
    yield f"devices: {len(local)} local, {jax.device_count()} in total: {kinds}"
    for device in local:
        if stats := device.memory_stats():
            used, limit = stats.get("bytes_in_use", 0) / 2**30, stats.get("bytes_limit", 0) / 2**30
            yield f"  {device}: {used:.1f} of {limit:.1f} GiB in use"
    yield f"collective: {_round_trip()}"
    if group.count() > 1:
        yield f"process {group.index()}: all {group.count()} processes answer"


def _round_trip() -> str:
    """Sums over all devices, checks the result, and returns the time from the call to the result on the host."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    spread, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    ones = jax.jit(lambda: jnp.ones(count), out_shardings=spread)()
    add = jax.jit(jnp.sum, out_shardings=whole).lower(ones).compile()
    times = []
    group.meet("the first sum")  # between CPUs, the first collective does not wait longer than 30 s for a process
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        total = float(add(ones))
        times.append(time.perf_counter() - start)
        if total != count:
            return f"WRONG RESULT: summing 1 from each of {count} devices gives {total:g}"
    devices = f"{count} device" + ("s" if count > 1 else "")
    return f"{devices}, {sorted(times[1:])[ROUNDS // 2] * 1e3:.2f} ms for a sum (median of {ROUNDS})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> str:
    """Returns the free and total memory of the host, and the limit of the container if it has one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "memory unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    limit = host_memory()
    text = f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB of memory free"
    return f"{text}, limit of the container {limit.bytes / 2**30:.1f} GiB" if limit and limit.container else text
