"""Settings that every test, and every process that a test starts, needs before it imports JAX."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

# What one test compiled, the next one and its child processes load: half of the suite's time. Each run of the tests has
# a cache of its own, since JAX writes an entry in place: a test that was killed would leave half of one to later runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="convoy-tests-", dir=os.environ.get("TEST_TMPDIR"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# A child process imports the same tree, from whatever folder it is started in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")) if path
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Lets no call of `os._exit` end the tests with code 0: the tests after it would be missing, not failed."""
    process, leave = os.getpid(), os._exit

    def leave_with_error(code: int) -> None:
        if os.getpid() == process:  # a forked process may leave
            session.config.pluginmanager.getplugin("capturemanager").suspend_global_capture()
            print("\nA test called os._exit in the process of the tests.", file=sys.stderr, flush=True)
            code = code or pytest.ExitCode.INTERNAL_ERROR
        leave(code)

    os._exit = leave_with_error
