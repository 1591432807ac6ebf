"""Killed and frozen data workers raise an error that names them, and no worker process remains."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback

import grain
import numpy as np
import pytest

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.data import workers
from engine.data.workers import MOST_AHEAD, DataWorkerError, Workers
from tests import runs

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def row(n):
    if n == 5000:
        raise DataError("Example 5000 of a test: gone.")
    return {"n": np.full(100_000, n)}  # large enough to go through shared memory


@pytest.fixture
def reader(request):
    start = getattr(request, "param", 0)
    reader = Workers(grain.MapDataset.range(start, 10**6).map(row), 2, 1)
    for n in range(start, start + 2):  # from both workers, so both have started
        assert next(reader)["n"][0] == n
    yield reader
    reader.close()
    assert pids() == []


def pids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, multiprocessing.active_children()
        time.sleep(0.01)


def drain(reader):
    for _ in range(100):
        next(reader)


def test_elements_come_in_order_and_leave_no_shared_memory_or_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = runs.shared_memory()
    for _ in range(2):  # each round closes the reader at another moment
        reader = Workers(grain.MapDataset.range(10**6).map(row), 2, 1)
        assert [int(next(reader)["n"][0]) for _ in range(20)] == list(range(20))
        element = next(reader)
        assert runs.shared_memory() > before
        reader.close()
        assert (element["n"] == 20).all()  # it stays in use
        del element
        assert runs.shared_memory() <= before + 1  # the heartbeats
        del reader
    assert runs.shared_memory() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("elements", "count", "buffer"), [(0, 2, 1), (1, 2, 1), (7, 2, 2), (3000, 1, 10 * MOST_AHEAD)])
def test_dataset_ends_after_its_last_element(elements, count, buffer):
    reader = Workers(grain.MapDataset.range(elements).map(lambda n: n * np.ones(2000)), count, buffer)
    wait_for(lambda: len(pids()) == min(elements, count))
    assert [element[0] for element in reader] == list(range(elements))
    assert next(reader, "the end") == "the end"
    reader.close()


@pytest.mark.parametrize("reader", [4998], indirect=True)
def test_error_of_the_source_is_raised_unchanged(reader):
    with pytest.raises(DataError, match="Example 5000 of a test: gone"):
        drain(reader)


def test_killed_worker_raises_a_retryable_error_with_its_signal(reader):
    os.kill(pids()[0], signal.SIGKILL)
    with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) was killed by SIGKILL") as error:
        drain(reader)
    assert error.value.exit_code == 42


def test_worker_killed_during_its_start_raises_a_retryable_error():
    reader = Workers(grain.MapDataset.range(10**6).map(row), 2, 1)
    try:
        wait_for(lambda: len(pids()) == 2)
        os.kill(pids()[1], signal.SIGKILL)
        with pytest.raises(DataWorkerError, match=r"data worker .* was killed by SIGKILL") as error:
            drain(reader)
        assert error.value.exit_code == 42
    finally:
        reader.close()
    assert pids() == []


def fail(n):
    raise KeyError("image")


def test_error_has_the_line_of_the_code_that_raised_it():
    reader = Workers(grain.MapDataset.range(10).map(fail), 1, 1)
    with pytest.raises(KeyError) as error:
        next(reader)
    line = fail.__code__.co_firstlineno + 1
    assert describe(error.value) == f"KeyError: 'image' (tests/data/workers_test.py:{line} in fail)."
    assert traceback.extract_tb(error.value.__traceback__)[-1].line == 'raise KeyError("image")'
    reader.close()


def test_dataset_that_cannot_be_pickled_raises_the_error_of_pickle():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle") as error:
        Workers(grain.MapDataset.range(10).map(lambda n: lock), 1, 1)
    assert describe(error.value).endswith("Open files on first use, or set data.workers=0.")


def leave(n):
    """Ends the worker of the odd elements by `os._exit(0)`."""
    if n % 2:
        os._exit(0)
    return row(n)


def test_worker_that_ends_by_itself_is_named_with_its_exit_code():
    reader = Workers(grain.MapDataset.range(10**6).map(leave), 2, 1)
    try:
        assert next(reader)["n"][0] == 0
        begin = time.monotonic()
        with pytest.raises(
            DataWorkerError, match=r"data worker .*\(pid \d+\) ended by itself with exit code 0:"
        ) as error:
            drain(reader)
        assert time.monotonic() - begin < 60  # Grain alone waits for ever
        assert error.value.exit_code == 1
    finally:
        reader.close()
    assert pids() == []


def test_frozen_worker_raises_an_error_and_is_killed(reader, monkeypatch):
    monkeypatch.setattr(workers, "FROZEN_S", 3.0)
    stopped = pids()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) has sent no heartbeat for 3 s"):
        drain(reader)
    wait_for(lambda: not set(stopped) & set(pids()))


def test_reader_closed_at_once_leaves_no_thread_and_no_process():
    before = set(threading.enumerate())
    Workers(grain.MapDataset.range(10).map(row), 1, 1).close()
    assert set(threading.enumerate()) <= before
    assert pids() == []


def test_slow_worker_is_not_reported_as_frozen(monkeypatch):
    monkeypatch.setattr(workers, "FROZEN_S", 4.0)
    reader = Workers(grain.MapDataset.range(1).map(lambda n: (time.sleep(9), n)[1]), 1, 1)
    assert list(reader) == [0]
    reader.close()
