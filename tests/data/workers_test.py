"""Worker processes that are killed or frozen are noticed, named, and none is left."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time

import grain
import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data import workers
from engine.data.workers import DataWorkerError, Workers

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    # Python's tracker says so where a collection of garbage falls into its own work; it tidies up all the same.
    pytest.mark.filterwarnings("ignore:ResourceTracker called reentrantly"),
]


def row(n):
    if n == 5000:
        raise DataError("Example 5000 of a test: gone.")
    return {"n": np.full(100_000, n)}  # large enough to go through shared memory


@pytest.fixture
def reader(request):
    before = {child.pid for child in multiprocessing.active_children()}
    start = getattr(request, "param", 0)
    reader = Workers(grain.MapDataset.range(start, 10**6).map(row), 2, 1)
    for n in range(start, start + 2):  # from both workers, which are known by then
        assert next(reader)["n"][0] == n
    yield reader
    reader.close()
    assert {child.pid for child in multiprocessing.active_children()} <= before


def pids():
    children = multiprocessing.active_children()
    return [child.pid for child in children if child.pid is not None and child.name.startswith("grain")]


def drain(reader):
    for _ in range(100):
        next(reader)


def test_batches_come_in_order_and_nothing_stays_in_shared_memory_or_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = 8 * (100_000 + os.getpid() % 10_000)  # bytes, by which the batches of this test are known
    for _ in range(3):  # closed at some other moment of the making of a batch
        reader = Workers(grain.MapDataset.range(10**6).map(lambda n: {"n": np.full(size // 8, n)}), 2, 1)
        assert [int(next(reader)["n"][0]) for _ in range(20)] == list(range(20))
        held = next(reader)
        assert in_shared_memory(size)
        del held
        reader.close()
    end = time.monotonic() + 10  # a thread of Grain's frees what the main process had
    while in_shared_memory(size):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def in_shared_memory(size: int) -> list[os.DirEntry[str]]:
    """The files there of so many bytes."""
    found = []
    for file in os.scandir("/dev/shm"):
        with contextlib.suppress(FileNotFoundError):  # just removed
            if file.stat().st_size == size:
                found.append(file)
    return found


@pytest.mark.parametrize("reader", [4998], indirect=True)
def test_an_error_of_the_source_comes_as_it_is(reader):
    with pytest.raises(DataError, match="Example 5000 of a test: gone"):
        drain(reader)


def test_a_killed_worker_is_named_with_its_signal_and_the_run_can_be_started_again(reader):
    os.kill(pids()[0], signal.SIGKILL)
    with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) was killed by SIGKILL") as error:
        drain(reader)
    assert error.value.exit_code == 42


def test_a_worker_that_is_killed_while_it_starts_is_told_too():
    reader = Workers(grain.MapDataset.range(10**6).map(row), 2, 1)
    try:
        while len(pids()) < 2:
            time.sleep(0.01)
        os.kill(pids()[1], signal.SIGKILL)
        with pytest.raises(DataWorkerError, match=r"data worker .* was killed by SIGKILL") as error:
            drain(reader)
        assert error.value.exit_code == 42
    finally:
        reader.close()
    assert pids() == []


def test_a_frozen_worker_is_named_and_killed(reader, monkeypatch):
    monkeypatch.setattr(workers, "FROZEN_S", 3.0)
    stopped = pids()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) has shown no life for 3 s"):
        drain(reader)
    end = time.monotonic() + 60
    while set(stopped) & set(pids()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reader_that_is_closed_at_once_leaves_no_thread():
    before = set(threading.enumerate())
    Workers(grain.MapDataset.range(10).map(row), 1, 1).close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("data-workers")]


def test_a_worker_that_has_made_its_last_batch_is_not_frozen(monkeypatch):
    """The other one takes long for its batch, which is its right."""
    monkeypatch.setattr(workers, "FROZEN_S", 1.5)
    reader = Workers(grain.MapDataset.range(1).map(lambda n: (time.sleep(5), n)[1]), 2, 1)
    assert list(reader) == [0]
    reader.close()


def test_a_worker_that_starts_while_its_reader_closes_ends_at_once(monkeypatch):
    monkeypatch.setattr(workers, "_Board", Closing)
    reader = Workers(grain.MapDataset.range(10**6).map(row), 1, 1)
    with pytest.raises(RuntimeError, match="exit code 1"):
        next(reader)
    reader.close()
    assert pids() == []


class Closing(workers._Board):
    """Says so from the beginning."""

    def __init__(self, slots: int):
        super().__init__(slots)
        self.write(0, True, 0)
