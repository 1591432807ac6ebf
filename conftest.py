"""Settings that every test, and every process that a test starts, needs before it imports JAX."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

# What one test compiled, the next one and its child processes load: half of the suite's time. Bazel gives each target
# a folder of its own.
_cache = pathlib.Path(os.environ.get("TEST_TMPDIR", tempfile.gettempdir())) / f"convoy-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# A child process imports the same tree, from whatever folder it is started in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")) if path
)
