"""Settings that every test, and every process that a test starts, needs before it imports JAX."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

# A child process imports the same tree, from whatever folder it is started in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")) if path
)
