"""Prints, as JSON, which devices JAX finds here. A process of its own, so that the command itself holds no device."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys

from benchmarks.accelerator.context import Machine

TORCH_VERSION = "import importlib.metadata; print(importlib.metadata.version('torch'))"


def probe(torch: str) -> Machine:
    """Returns the machine. `torch` is an interpreter that has torch; empty: this one, if it does."""
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    no_torch = ""
    if device.platform == "tpu":
        torch, no_torch = "", "skipped on TPU"
    elif not torch and importlib.util.find_spec("torch") is None:
        no_torch = "not installed"
    if not no_torch:
        torch = torch or sys.executable
        done = subprocess.run([torch, "-c", TORCH_VERSION], capture_output=True, text=True)
        if done.returncode:
            torch, no_torch = "", f"{torch} has no torch"
        else:
            versions += f", torch {done.stdout.strip()}"
    return Machine(
        device.platform,
        device.device_kind,
        len(jax.devices()),
        int(stats.get("bytes_limit", 0)),
        torch,
        no_torch,
        versions,
    )


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(probe(sys.argv[1]))))
