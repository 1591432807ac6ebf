"""A saver writes one step at a time while its caller continues, and every save ends before its deadline.

A hanging disk is simulated by a named pipe in place of a file: opening it for writing blocks in the system call until
the test reads. tests/faults/storage_test.py also tests agreement among processes.
"""

import os
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from engine.checkpoint import timeouts
from engine.checkpoint.async_save import Saver
from engine.parallel.digest import Digests
from engine.run.lease import Lease, LeaseLost
from engine.storage import background
from tests import runs

LONG = 60.0


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(timeouts, "RECENT_S", 1.0)  # tests/zoo.py makes it longer
    return lambda timeout_s=LONG: Saver(tmp_path, timeout_s)


@pytest.fixture
def hang(tmp_path):
    """Makes the n-th save of a step hang at its last files; returns a function that unblocks it, so that it fails."""
    pipes = []

    def hang(step, n):
        (tmp_path / f"{step}.{n}.saving" / "position").mkdir(parents=True)
        os.mkfifo(tmp_path / f"{step}.{n}.saving" / "position" / "position.json")
        pipes.append(tmp_path / f"{step}.{n}.saving" / "position" / "position.json")
        return release

    def release():
        readers = [os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) for pipe in pipes if pipe.exists()]
        pipes.clear()
        end = time.monotonic() + LONG
        while background.hanging():
            assert time.monotonic() < end
            time.sleep(0.01)
        for reader in readers:
            os.close(reader)

    yield hang
    release()


def start(saver, step):
    saver.save(step, {"w": jnp.full(4, float(step))}, {"next_batch": step}, "")


def test_poll_returns_an_ended_save_once(make, tmp_path):
    saver = make()
    assert saver.in_flight is None and saver.poll() is None and saver.free(wait=False)
    start(saver, 1)
    saver.wait()
    assert (tmp_path / "1" / "commit_success.txt").is_file()
    ended = saver.poll()
    assert ended is not None and (ended.step, ended.failure) == (1, "")
    assert saver.in_flight is None and saver.poll() is None


def test_digests_are_computed_by_programs_of_the_thread_that_saves(make, monkeypatch):
    """Where two threads start programs of several CPU devices, XLA hangs, at random."""
    threads, rows = [], Digests.rows

    def recorded(self, state, gather=False):
        if isinstance(state, dict):  # not the single array that is read back, on one device
            threads.append(threading.current_thread())
        return rows(self, state, gather)

    monkeypatch.setattr(Digests, "rows", recorded)
    saver = make()
    start(saver, 1)
    saver.wait()
    ended = saver.poll()
    assert ended is not None and ended.failure == ""
    assert threads == [threading.main_thread()]


def test_existing_step_is_replaced(make, tmp_path):
    saver = make()
    for _ in range(2):
        start(saver, 1)
        saver.wait()
        assert saver.poll().failure == ""
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_failed_save_leaves_no_files_and_the_next_save_works(make, tmp_path):
    saver = make()
    (tmp_path / "1.1.saving").write_text("a file is in the way")
    start(saver, 1)
    saver.wait()
    words = saver.poll().failure
    assert "free there, the state has 16 B" in words
    (tmp_path / "1.1.saving").unlink()
    (tmp_path / "9.9.saving").mkdir()  # left by an earlier failure
    start(saver, 1)
    saver.wait()
    assert saver.poll().failure == ""
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_save_on_hanging_storage_fails_at_its_deadline(make, hang, tmp_path):
    saver, release = make(timeout_s=2.0), hang(1, 1)
    start(saver, 1)
    assert not saver.free(wait=False) and saver.in_flight == 1
    saver.wait()
    words = saver.poll().failure
    assert words.startswith("not written within checkpoint.timeout, 2 s")
    assert saver.free(wait=False)
    assert background.hanging()
    release()
    assert not (tmp_path / "1").exists()


def test_save_after_a_hanging_save_fails_without_copying_the_state(make, hang):
    saver, release = make(timeout_s=3.0), hang(1, 1)
    start(saver, 1)
    saver.wait()
    saver.poll()
    start(saver, 2)
    saver.wait()
    assert saver.poll().failure == "the storage has still not answered the previous save"
    release()
    start(saver, 3)
    saver.wait()
    assert saver.poll().failure == ""


def test_wait_returns_after_its_own_timeout(make, hang):
    saver = make()
    hang(1, 1)
    start(saver, 1)
    waiting = threading.Thread(target=saver.wait, args=(0.1,))
    waiting.start()
    waiting.join(LONG)
    assert not waiting.is_alive() and saver.in_flight == 1


def test_ended_save_keeps_no_copy_of_the_state(make):
    def states():
        return sum(array.shape == (4,) for array in jax.live_arrays())

    before, saver = states(), make()
    start(saver, 1)
    saver.wait()
    assert states() == before and not saver.poll().failure


@pytest.mark.parametrize("lost_at", [1, 2])
def test_job_that_lost_its_lease_removes_no_files_of_the_new_owner(tmp_path, lost_at):
    """The job loses its lease before its save begins to write, or when everything is written; another job saves."""
    (tmp_path / "1").mkdir()
    calls = []

    class LostLease(Lease):
        def verify(self):
            calls.append(True)
            if len(calls) >= lost_at:
                (tmp_path / "2.1.saving").mkdir(exist_ok=True)
                raise LeaseLost("another job has taken over this run")

    saver = Saver(tmp_path, LONG, LostLease())
    start(saver, 1)
    saver.wait()
    ended = saver.poll()
    assert ended is not None and "another job has taken over this run" in ended.failure
    assert (tmp_path / "1").is_dir() and not list((tmp_path / "1").iterdir())
    assert (tmp_path / "2.1.saving").is_dir()
    assert not list(tmp_path.glob("*.deleted"))


TWO = """
import resource, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from engine.checkpoint.async_save import Saver
from engine.cluster import cluster_detection, group, processes

processes.initialize(cluster_detection.detect().process)
mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
rows = np.random.default_rng(group.index()).normal(size=(jax.local_device_count(), 5000)).astype(np.float32)
w = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("fsdp")), rows)
saver = Saver(Path(sys.argv[1]), 60)

def save(step):
    assert saver.free(wait=True)
    saver.save(step, {"w": w}, {}, "")
    saver.wait()
    ended = saver.poll()
    print(step, ended.stage.name, ended.failure.partition(";")[0], flush=True)

save(1)
former = resource.getrlimit(resource.RLIMIT_FSIZE)
if group.index() == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
save(2)
resource.setrlimit(resource.RLIMIT_FSIZE, former)
save(3)
processes.leave()
"""


@pytest.mark.multiprocess
def test_save_that_fails_in_one_process_fails_in_all_and_the_next_save_works(tmp_path):
    """Files of the second process are limited to a kilobyte, which simulates a full disk."""
    lines = runs.lines_by_process(TWO, tmp_path, processes=2)
    for process in "01":
        assert lines[process] == ["1 DURABLE", "2 FAILED process 1: File too large", "3 DURABLE"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
