import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.batches import Batches
from engine.data.ragged.packing import Packed
from engine.data.reader import read
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, BaseSource

DEADLINE = 60  # seconds; only a failure takes so long


class Noisy(ArraySource):
    def transform(self, example, rng):
        return {**example, "noise": rng.random(200, dtype=np.float32)}


def make(size=100):
    # A local class is pickled by value for the workers, like a class of a notebook.
    class Local(Noisy):
        pass

    return Local({"label": np.arange(size, dtype=np.int32)})


def batches():
    return Batches(make(), 16, seed=0, shuffle=True)


def numbers(reader, count=None):
    try:
        found = []
        while count is None or len(found) < count:
            try:
                found.append(next(reader))
            except StopIteration:
                break
        return [(batch.examples["label"].tolist(), batch.examples["noise"].tolist()) for batch in found]
    finally:
        reader.close()


def expected(start, stop):
    made = (batches()[n] for n in range(start, stop))
    return [(batch.examples["label"].tolist(), batch.examples["noise"].tolist()) for batch in made]


def becomes_true(condition):
    """Returns whether a condition becomes true before the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.01)
    return True


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_come_in_order_with_any_number_of_threads(threads, prefetch):
    assert numbers(read(batches(), range(30), threads=threads, workers=0, prefetch=prefetch)) == expected(0, 30)


@pytest.mark.parametrize("threads", [0, 2])
def test_reading_resumes_at_any_batch(threads):
    first = numbers(read(batches(), range(30), threads=threads, workers=0, prefetch=4), count=13)
    rest = numbers(read(batches(), range(13, 30), threads=threads, workers=0, prefetch=4))
    assert first + rest == expected(0, 30)


@pytest.mark.multiprocess
def test_workers_give_equal_batches_and_end_at_close():
    reader = read(batches(), range(5, 12), threads=0, workers=2, prefetch=2)
    assert becomes_true(lambda: len(multiprocessing.active_children()) == 2)  # before the first batch is requested
    assert numbers(reader) == expected(5, 12)
    assert becomes_true(lambda: multiprocessing.active_children() == [])


@pytest.mark.multiprocess
def test_workers_read_packed_and_mixed_sources_like_the_main_process():
    class Documents(BaseSource):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return {"tokens": np.arange(index)}

    def mixed():
        sources = {"split": Packed(Documents(), 8), "whole": Packed(Documents(), 8, split=False)}
        return Batches(Mixture(sources, {"split": 2, "whole": 1}), 16, seed=0, shuffle=True)

    plain, reader = mixed(), read(mixed(), range(3, 8), threads=0, workers=2, prefetch=2)
    try:
        np.testing.assert_equal([batch.examples for batch in reader], [plain[n].examples for n in range(3, 8)])
    finally:
        reader.close()


@pytest.mark.multiprocess
def test_workers_can_be_closed_during_their_start():
    reader = read(batches(), range(10_000), threads=0, workers=1, prefetch=1)
    reader.close()
    assert becomes_true(lambda: multiprocessing.active_children() == [])


@pytest.mark.multiprocess
def test_reader_raises_the_error_of_a_worker():
    class Broken(ArraySource):
        def __getitem__(self, index):
            raise OSError("disk gone")

    broken = Batches(Broken({"label": np.arange(4)}), 2, 0, False)
    reader = read(broken, range(4), threads=0, workers=1, prefetch=1)
    try:
        with pytest.raises(DataError, match=r"Example 0 of .*Broken: OSError: disk gone"):
            next(reader)
    finally:
        reader.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_reader_raises_the_error_of_a_source(threads):
    class Broken(ArraySource):
        def __getitem__(self, index):
            raise OSError("disk gone")

    reader = read(
        Batches(Broken({"label": np.arange(4)}), 2, 0, False), range(4), threads=threads, workers=0, prefetch=1
    )
    with pytest.raises(DataError, match=r"Example 0 of .*Broken: OSError: disk gone"):
        next(reader)
    reader.close()


def test_empty_range_gives_no_batches():
    for start, stop in ((3, 3), (7, 5)):
        assert numbers(read(batches(), range(start, stop), threads=2, workers=0, prefetch=2)) == []


@pytest.mark.multiprocess
def test_range_can_have_fewer_batches_than_workers():
    assert numbers(read(batches(), range(2, 3), threads=0, workers=2, prefetch=2)) == expected(2, 3)


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    reader = read(batches(), range(1000), threads=3, workers=0, prefetch=6)
    next(reader)
    assert set(threading.enumerate()) - before
    reader.close()
    assert becomes_true(lambda: not set(threading.enumerate()) - before)


def test_reader_starts_before_the_first_batch_is_requested():
    made = threading.Event()

    class Signalling:
        def __getitem__(self, n):
            made.set()
            return n

    reader = read(Signalling(), range(10), threads=1, workers=0, prefetch=1)
    assert made.wait(DEADLINE)
    reader.close()


MAIN = """
import sys
import numpy as np
from engine.data.batches import Batches
from engine.data.reader import read
from engine.data.source import ArraySource

class Transformed(ArraySource):
    def transform(self, example, rng):
        return example

def main():
    source = Transformed({"label": np.arange(100), "image": np.ones((100, 20_000), np.uint8)})
    reader = read(Batches(source, 4, 0, False), range(0, 10**6), threads=0, workers=1, prefetch=1)
    print(next(reader).examples["label"].tolist(), flush=True)
    sys.stdin.readline()
    later = [next(reader).examples["label"].tolist() for _ in range(10)]  # more than are prefetched
    print(later[0], later[-1], flush=True)
    reader.close()

if __name__ == "__main__":
    main()
"""


def children(pid):
    """Returns the process ids of the children of a process."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def program(tmp_path):
    """A process that has read one batch from a worker and waits for a line of input."""
    (tmp_path / "program.py").write_text(MAIN)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "program"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "[0, 1, 2, 3]\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_ignore_sigint_and_sigterm(program):
    for child in children(program.pid):
        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
    out, _ = program.communicate("\n", timeout=DEADLINE)
    assert out == "[4, 5, 6, 7] [40, 41, 42, 43]\n"
    assert program.returncode == 0


@pytest.mark.multiprocess
@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_the_main_process_is_killed(program):
    workers = children(program.pid)
    assert len(workers) >= 1
    program.kill()
    program.wait()
    assert becomes_true(lambda: not any(alive(pid) for pid in workers))


@pytest.mark.parametrize("block", [2, 7, 32])
def test_batches_read_in_blocks_equal_batches_read_singly(block):
    plain = Batches(ArraySource({"label": np.arange(100, dtype=np.int32)}), 16, seed=0, shuffle=True)
    for start, stop in ((0, 30), (5, 30), (29, 30), (30, 30)):
        reader = read(plain, range(start, stop), threads=2, workers=0, prefetch=4, block=block)
        found = [batch.examples["label"].tolist() for batch in reader]
        reader.close()
        assert found == [plain[n].examples["label"].tolist() for n in range(start, stop)]


def test_wait_is_measured_once_per_block():
    plain = Batches(ArraySource({"label": np.arange(100, dtype=np.int32)}), 16, seed=0, shuffle=True)
    reader = read(plain, range(12), threads=1, workers=0, prefetch=1, block=4)
    waited = []
    for _ in reader:
        waited.append(reader.wait_s)
    reader.close()
    assert waited[0] > 0
    assert [later > before for before, later in itertools.pairwise(waited)] == [False] * 3 + ([True] + [False] * 3) * 2


def test_error_in_a_block_is_raised_at_its_batch():
    class Broken(ArraySource):
        def take(self, indices):
            if 6 in indices:
                raise OSError("bad sector")
            return super().take(indices)

        def __getitem__(self, index):
            if index == 6:
                raise OSError("bad sector")
            return super().__getitem__(index)

    batches = Batches(Broken({"label": np.arange(8)}), 2, seed=0, shuffle=False)
    reader = read(batches, range(8), threads=1, workers=0, prefetch=1, block=8)
    assert [next(reader).examples["label"].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(DataError, match=r"Example 6 of .*Broken: OSError: bad sector"):
        next(reader)
    reader.close()
