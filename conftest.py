"""Settings that every test, and every process that a test starts, needs before it imports JAX."""

import atexit
import gc
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

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

# Most objects of JAX live as long as the tests. Searching them for cycles after every 700 new ones, as Python does by
# default, took 2 to 5 % of the CPU time.
gc.set_threshold(100_000)

# A child process imports the same tree, from whatever folder it is started in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")) if path
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Lets no call of `os._exit` end the tests with code 0: the tests after it would be missing, not failed."""
    process, leave = os.getpid(), os._exit
    capture: Any = session.config.pluginmanager.getplugin("capturemanager")

    def leave_with_error(code: int) -> None:
        if os.getpid() == process:  # a forked process may leave
            capture.suspend_global_capture()
            print("\nA test called os._exit in the process of the tests.", file=sys.stderr, flush=True)
            code = code or pytest.ExitCode.INTERNAL_ERROR
        leave(code)

    os._exit = leave_with_error


# Most tests compare programs that are compiled alike, or a program with a formula. LLVM does not optimize their machine
# code, nor that of processes that they start, which saves a third of the CPU time; XLA's own passes, the partitioner
# among them, are those of a run. Tests of these packages and files, and tests marked `optimized`, compile as runs do:
# they compare bits with stored ones, read what the compiler has made, or use a cluster that has started before.
OPTIMIZED = {"aot", "configs", "ray", "run_format_test.py", "run_format_2_test.py"}
TESTS = pathlib.Path(__file__).parent / "tests"
VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def _set_optimized(optimized: bool) -> None:
    os.environ[VARIABLE] = str(int(not optimized))  # read when JAX is imported, also by processes
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_disable_most_optimizations", not optimized)


def _is_optimized(node: pytest.Item | pytest.Module) -> bool:
    """Whether a test, or the fixtures of its module, compile as runs do. A package compiles as the one around it."""
    package = node.path.relative_to(TESTS).parts[0] if TESTS in node.path.parents else ""
    return package in OPTIMIZED or any(mark.name == "optimized" for mark in node.iter_markers())


@pytest.fixture(autouse=True, scope="module")
def optimized_module(request: pytest.FixtureRequest) -> None:
    """Chooses the optimizations of the fixtures of a module."""
    _set_optimized(_is_optimized(request.node))


@pytest.fixture(autouse=True)
def optimized_test(request: pytest.FixtureRequest, optimized_module: None) -> Iterator[None]:
    """Chooses the optimizations of a test."""
    _set_optimized(_is_optimized(request.node))
    yield
    _set_optimized(_is_optimized(request.node.getparent(pytest.Module)))


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    """The address of an S3 server with a bucket `data`, which tests share one after the other."""
    from tests.s3_server import s3_server

    with s3_server("data") as address:
        yield address


@pytest.fixture
def bucket(bucket_server: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The objects of the empty bucket `data`, which the engine reads without a mount."""
    from tests.bucket_store import empty_store

    with empty_store(bucket_server, tmp_path / "cache", monkeypatch) as store:
        yield store
