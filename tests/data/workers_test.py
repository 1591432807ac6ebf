"""Killed and frozen data workers raise an error that names them, and no worker process remains."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess

import grain
import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data import workers
from engine.data.workers import DataWorkerError, Workers

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    # Python's resource tracker warns if the garbage collector runs during its work; it cleans up nevertheless.
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
    for n in range(start, start + 2):  # from both workers, so both have sent a heartbeat
        assert next(reader)["n"][0] == n
    yield reader
    reader.close()
    wait_for(lambda: {child.pid for child in multiprocessing.active_children()} <= before)


def workers_of(children):
    return [child for child in children if child.name.startswith("grain")]


def pids() -> list[int]:
    return [child.pid for child in workers_of(multiprocessing.active_children()) if child.pid is not None]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, multiprocessing.active_children()
        time.sleep(0.01)


def drain(reader):
    for _ in range(100):
        next(reader)


def test_batches_come_in_order_and_leave_no_shared_memory_or_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(workers, "CLOSE_S", 60.0)  # a killed worker leaves memory until this process ends
    monkeypatch.setattr(workers, "ACKNOWLEDGE_S", 60.0)
    size = 8 * (100_000 + os.getpid() % 10_000)  # bytes; identifies the batches of this test
    for _ in range(3):  # each round closes the reader at another moment
        reader = Workers(grain.MapDataset.range(10**6).map(lambda n: {"n": np.full(size // 8, n)}), 2, 1)
        assert [int(next(reader)["n"][0]) for _ in range(20)] == list(range(20))
        batch = next(reader)
        assert in_shared_memory(size)
        del batch
        reader.close()
    wait_for(lambda: not in_shared_memory(size))  # a thread of Grain frees the main process's batch
    assert list(tmp_path.iterdir()) == []


def test_worker_killed_while_it_creates_shared_memory_leaves_none(tmp_path):
    size = 8 * (100_000 + os.getpid() % 10_000)
    program = f"""
import grain, numpy as np
from engine.data.workers import DataWorkerError, Workers
from tests.data.workers_test import kill_at_creation
if __name__ == "__main__":
    reader = Workers(grain.MapDataset.range(100).map(kill_at_creation).map(lambda n: np.zeros({size // 8})), 1, 1)
    try:
        next(reader)
    except DataWorkerError as error:
        print(error)
    reader.close()
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True)
    assert "was killed by SIGKILL" in done.stdout, done.stderr
    wait_for(lambda: not in_shared_memory(size))  # the resource tracker removes it after the program's end


def kill_at_creation(n):
    """Lets this worker kill itself where `SharedMemory` sets the size of what it has created."""
    truncate = os.ftruncate

    def truncate_and_die(fd, length):
        truncate(fd, length)
        os.kill(os.getpid(), signal.SIGKILL)

    os.ftruncate = truncate_and_die
    return n


def in_shared_memory(size: int) -> list[os.DirEntry[str]]:
    """Returns the files of this size in /dev/shm."""
    found = []
    for file in os.scandir("/dev/shm"):
        with contextlib.suppress(FileNotFoundError):  # just removed
            if file.stat().st_size == size:
                found.append(file)
    return found


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
    wait_for(lambda: pids() == [])


def test_worker_listed_after_the_first_element_is_named_when_it_is_killed(monkeypatch):
    """Grain starts the workers in parallel: on a loaded machine, one has made an element before the other is listed."""
    first_made = threading.Event()
    listed: list[BaseProcess] = []

    def active_children(list_all=multiprocessing.active_children):
        children = list_all()
        listed.extend(workers_of(children)[: 1 - len(listed)])
        return [child for child in children if child in listed or first_made.is_set()]

    monkeypatch.setattr(multiprocessing, "active_children", active_children)
    reader = Workers(grain.MapDataset.range(10**6).map(row), 2, 1)
    try:
        assert [next(reader)["n"][0] for _ in range(2)] == [0, 1]
        first_made.set()
        wait_for(lambda: len(reader._processes) == 2)
        os.kill(next(pid for pid in pids() if pid != listed[0].pid), signal.SIGKILL)
        with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) was killed by SIGKILL"):
            drain(reader)
    finally:
        reader.close()
    monkeypatch.undo()
    wait_for(lambda: pids() == [])


def leave(n):
    """Ends the worker of the odd elements by `os._exit`: with 0 from element 20 on, with 7 from element 90 on."""
    if n >= 20 and n % 2:
        os._exit(n // 10 - 2)
    return row(n)


@pytest.mark.parametrize(("start", "code"), [(20, 0), (90, 7)])
def test_worker_that_ends_by_itself_is_named_with_its_exit_code(start, code):
    reader = Workers(grain.MapDataset.range(start, 10**6).map(leave), 2, 1)
    try:
        assert next(reader)["n"][0] == start
        begin = time.monotonic()
        with pytest.raises(
            DataWorkerError, match=rf"data worker .*\(pid \d+\) ended by itself with exit code {code}:"
        ) as error:
            drain(reader)
        assert time.monotonic() - begin < 60  # Grain alone waits for ever
        assert error.value.exit_code == 1
    finally:
        reader.close()
    wait_for(lambda: pids() == [])


@pytest.mark.parametrize(("worker", "where"), [(None, "the data source"), (1, rf"data worker 1 \(pid {os.getpid()}\)")])
def test_sys_exit_in_a_data_source_is_a_data_error(worker, where, monkeypatch):
    monkeypatch.setattr(workers, "_worker", worker)
    text = rf"^{where}: SystemExit: the code ended the process with sys.exit\(3\) \(tests/data/workers_test.py:"
    with pytest.raises(DataError, match=text), workers.exits_reported():
        raise SystemExit(3)


def test_frozen_worker_raises_an_error_and_is_killed(reader, monkeypatch):
    monkeypatch.setattr(workers, "FROZEN_S", 3.0)
    stopped = pids()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataWorkerError, match=r"data worker \d \(pid \d+\) has sent no heartbeat for 3 s"):
        drain(reader)
    wait_for(lambda: not set(stopped) & set(pids()))


def test_reader_closed_at_once_leaves_no_thread():
    before = set(threading.enumerate())
    Workers(grain.MapDataset.range(10).map(row), 1, 1).close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("data-workers")]


def test_finished_worker_is_not_reported_as_frozen(monkeypatch):
    """The first worker has ended while the second takes long for its batch."""
    monkeypatch.setattr(workers, "FROZEN_S", 4.0)
    reader = Workers(grain.MapDataset.range(1).map(lambda n: (time.sleep(9), n)[1]), 2, 1)
    assert list(reader) == [0]
    reader.close()


def test_worker_that_starts_during_close_exits_at_once(monkeypatch):
    monkeypatch.setattr(workers, "_SharedSlots", ClosingSlots)
    reader = Workers(grain.MapDataset.range(10**6).map(row), 1, 1)
    with pytest.raises(DataWorkerError, match=r"a data worker that was starting .* ended by itself with exit code 1"):
        next(reader)
    reader.close()
    wait_for(lambda: pids() == [])


class ClosingSlots(workers._SharedSlots):
    """Slots that state from the start that the reader is closing."""

    def __init__(self, slots: int):
        super().__init__(slots)
        self.write(0, True, 0)
