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


# Tests of these packages and files compare programs that are compiled alike, or a program with a formula. LLVM does not
# optimize their machine code, which saves a third of the CPU time; XLA's own passes, the partitioner among them, are
# those of a run. Programs stay optimized in other tests that start processes, and in tests marked `optimized`.
UNOPTIMIZED = {"api", "benchmarks", "compile", "diagnosis", "driving", "layers", "loop", "metrics", "models", "surface"}
UNOPTIMIZED |= {"adapters", "bundles", "experiments", "hub", "joint", "optimizers", "parallel", "perception"}
UNOPTIMIZED |= {"docs", "planning", "quantization", "scaffold", "training", "tuning"}
# In these packages and files, the processes that a test starts compile like the test itself, without the optimizations.
WITH_PROCESSES = {"api", "loop", "models", "joint_runs_test.py", "kill_and_resume_test.py", "odd_paths_test.py"}
WITH_PROCESSES |= {"processes_test.py", "program_cache_test.py", "ragged_runs_test.py", "row_state_runs_test.py"}
WITH_PROCESSES |= {"sequence_runs_test.py", "stream_runs_test.py", "unfreezing_runs_test.py", "weighted_runs_test.py"}
UNOPTIMIZED |= WITH_PROCESSES
TESTS = pathlib.Path(__file__).parent / "tests"
VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # of the processes


def _set_optimized(optimized: bool, path: pathlib.Path) -> None:
    import jax  # the variables above come first

    jax.config.update("jax_disable_most_optimizations", not optimized)
    if _package(path) in WITH_PROCESSES:
        os.environ[VARIABLE] = str(int(not optimized))


def _package(path: pathlib.Path) -> str:
    """The folder or the file below `tests`. A package inside another one compiles as that does."""
    return path.relative_to(TESTS).parts[0] if TESTS in path.parents else ""


def _has_optimized_runs(path: pathlib.Path) -> bool:
    """Whether the tests of a file compile as runs do."""
    return _package(path) not in UNOPTIMIZED


def _is_optimized(node: pytest.Item | pytest.Module) -> bool:
    names = {mark.name for mark in node.iter_markers()}
    return "optimized" in names or ("multiprocess" in names and _package(node.path) not in WITH_PROCESSES)


@pytest.fixture(autouse=True, scope="module")
def unoptimized_package(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without the optimizations of LLVM, also in fixtures of a module, where tests do not need them."""
    if _has_optimized_runs(request.path) or _is_optimized(request.node):
        yield
        return
    _set_optimized(False, request.path)
    yield
    _set_optimized(True, request.path)


@pytest.fixture(autouse=True)
def optimized_test(request: pytest.FixtureRequest, unoptimized_package: None) -> Iterator[None]:
    """Compiles with these optimizations in a test that needs them."""
    if _has_optimized_runs(request.path) or not _is_optimized(request.node):
        yield
        return
    _set_optimized(True, request.path)
    yield
    _set_optimized(_is_optimized(request.node.getparent(pytest.Module)), request.path)


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
