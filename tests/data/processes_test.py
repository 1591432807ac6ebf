import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epy

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.data import processes
from engine.data.processes import ProcessEnded, Processes, Reported
from tests import runs

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


class Odd(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def work(job, report):
    """Does a job: a name of something that goes wrong, or an object that is returned with what JAX may use."""
    report("half")
    match job if isinstance(job, str) else "":
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), 9)
        case "odd":
            raise Odd("strange", "error")
        case "lock":
            return threading.Lock()
        case "wait":
            time.sleep(600)
    return job, os.environ["JAX_PLATFORMS"]


class LoadedLazily:
    """An object whose loading takes several heartbeats, while etils imports modules lazily, as orbax does."""

    def __call__(self, job, report):
        return job

    def __setstate__(self, state):
        with epy.lazy_imports():
            time.sleep(5 * processes.HEARTBEAT_S)

    def __getstate__(self):
        return {"some": "state"}


class NotLoadable:
    def __reduce__(self):
        return open, ("/does/not/exist",)


@pytest.fixture
def pool():
    pool = Processes(pickle.dumps(work), 2, "test process")
    yield pool
    pool.close()
    assert multiprocessing.active_children() == []


def test_each_process_returns_progress_and_results_in_the_order_of_its_jobs(pool):
    pool.send(0, ["a", "b"])
    pool.send(1, ["c"])
    assert [pool.receive(0) for _ in range(4)] == [Reported("half"), ("a", "cpu"), Reported("half"), ("b", "cpu")]
    assert [pool.receive(1) for _ in range(2)] == [Reported("half"), ("c", "cpu")]
    assert pool.wait([0, 1], 0.0) == []
    assert pool.heartbeats(0) > 0


def test_heartbeats_continue_while_another_thread_imports_lazily():
    pool = Processes(pickle.dumps(LoadedLazily()), 1)
    pool.send(0, ["job"])
    assert pool.receive(0) == "job"
    assert pool.heartbeats(0) >= 3
    pool.close()


@pytest.mark.parametrize("size", [100, 1000, 10**6])
def test_arrays_and_large_objects_arrive_unchanged(pool, size):
    job = {"array": np.arange(size), "text": "x" * size, "more": [np.full(100, i) for i in range(size // 100)]}
    pool.send(0, [job, job])
    for _ in range(2):
        assert pool.receive(0) == Reported("half")
        found, _ = pool.receive(0)
        np.testing.assert_equal(found, job)


def test_errors_of_jobs_are_raised_and_the_process_continues(pool):
    pool.send(1, ["exit", "odd", "lock", "last"])
    exited = rf"test process 1 \(pid {pool.pid(1)}\): SystemExit: the code ended the process with sys.exit\(3\)"
    here = r" \(tests/data/processes_test.py:\d+ in work\)"
    for kind, text in ((DataError, exited + here), (DataError, "Odd: strange error" + here), (TypeError, "pickle")):
        assert pool.receive(1) == Reported("half")
        with pytest.raises(kind, match=text):
            pool.receive(1)
    assert [pool.receive(1) for _ in range(2)] == [Reported("half"), ("last", "cpu")]


def test_ended_process_is_reported_also_if_a_job_is_sent_to_it_later(pool):
    pool.send(0, ["first", "kill"])
    assert [pool.receive(0) for _ in range(3)] == [Reported("half"), ("first", "cpu"), Reported("half")]
    for _ in range(2):
        with pytest.raises(ProcessEnded) as ended:
            pool.receive(0)
        assert (ended.value.index, ended.value.pid, ended.value.starting) == (0, pool.pid(0), False)
        assert ended.value.signal == "SIGKILL, probably for lack of memory"
        pool.send(0, ["later"])
    pool.send(1, ["other"])
    assert pool.receive(1) == Reported("half")


def test_function_that_cannot_be_loaded_is_an_error_of_each_job():
    pool = Processes(pickle.dumps(NotLoadable()), 1)
    pool.send(0, [1, 2])
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as error:
            pool.receive(0)
        assert describe(error.value).endswith("The data source cannot be loaded in another process.")
    pool.close()


def test_processes_that_cannot_be_started_raise_the_reason(monkeypatch):
    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", lambda process: 1 / 0)
    pool = Processes(pickle.dumps(work), 2)
    pool.send(1, ["a"])
    with pytest.raises(ZeroDivisionError):
        pool.receive(1)
    pool.close()


def test_busy_process_is_killed_when_the_patience_ends(pool):
    pool.send(0, ["wait"])
    pool.receive(0)
    begin = time.monotonic()
    pool.close(0.5)
    assert 0.5 <= time.monotonic() - begin < 60
    assert multiprocessing.active_children() == []
    pool.close()


def test_pool_leaves_no_memory_and_no_file_descriptors(pool):
    pool.close()
    before = runs.shared_memory(), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        again = Processes(pickle.dumps(work), 2)
        again.send(0, [np.ones(100_000)])
        assert again.receive(0) == Reported("half")
        assert again.receive(0)[0].sum() == 100_000
        again.close()
        del again
    assert (runs.shared_memory(), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("how", ["returns", "is killed"])
def test_program_that_ends_without_close_leaves_no_process(tmp_path, how):
    (tmp_path / "program.py").write_text(f"""
import os, pickle, signal
from engine.data.processes import Processes
from tests.data.processes_test import work
if __name__ == "__main__":
    pool = Processes(pickle.dumps(work), 2)
    for index in range(2):
        pool.send(index, ["wait"])
        pool.receive(index)
    print(pool.pid(0), pool.pid(1), flush=True)
    if {how!r} == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0 if how == "returns" else -9, "")
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in done.stdout.split()):
        assert time.monotonic() < end
        time.sleep(0.01)
