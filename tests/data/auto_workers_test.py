"""The number of workers changes while a run reads: the batches stay the same, and the fastest number is found."""

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data import auto_workers
from engine.data.auto_workers import AutoBlocks, BlockIterator, Changeable, Choice, Window
from engine.data.batches import Batches
from engine.data.reader import read
from engine.data.source import ArraySource
from engine.data.stages import NO_TIMES
from tests import runs
from tests.properties import examples

STOP = 40


class Noisy(ArraySource):
    def transform(self, example, rng):
        return {**example, "noise": rng.random(200, dtype=np.float32)}


def batches():
    class Local(Noisy):  # pickled by value for the workers
        pass

    return Batches(Local({"label": np.arange(100, dtype=np.int32)}), 16, seed=0, shuffle=True)


def content(batch):
    return {name: leaf.tobytes() for name, leaf in batch.examples.items()}


class Numbers(BlockIterator[Any]):
    """Iterator over blocks of consecutive numbers, which records what is opened and closed."""

    def __init__(self, first, workers, size, log):
        self.next, self.workers, self.size, self.log = first, workers, size, log
        log.append(("open", workers, first))

    def __next__(self):
        if self.next >= STOP:
            raise StopIteration
        block = list(range(self.next, min(self.next + self.size, STOP)))
        self.next += len(block)
        return [(n, self.workers) for n in block], NO_TIMES

    def close(self):
        self.log.append(("close", self.workers))


@examples(40)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=6, max_size=6),
    changes=st.lists(st.tuples(st.integers(0, STOP + 5), st.integers(0, 5)), max_size=5),
    start=st.integers(0, 5),
)
def test_every_batch_comes_once_from_the_number_of_workers_of_its_time(sizes, changes, start):
    log, found, expected = [], [], {}
    blocks: Any = Changeable(lambda first, workers: Numbers(first, workers, sizes[workers], log), start, STOP)
    todo, workers = list(changes), 0
    while True:
        if todo and not blocks.changing:
            at, number = todo.pop(0)
            if blocks.change(number, at):
                expected[at] = number
        try:
            found += next(blocks)[0]
        except StopIteration:
            break
    blocks.close()
    assert [n for n, _ in found] == list(range(start, STOP))
    for n, made_by in found:
        workers = expected.get(n, workers)
        assert made_by == workers
    assert sorted(entry[1] for entry in log if entry[0] == "open") == sorted(e[1] for e in log if e[0] == "close")


@pytest.mark.multiprocess
def test_batches_are_bitwise_equal_with_0_1_and_2_workers_and_across_changes_of_the_number(monkeypatch):
    monkeypatch.setattr(auto_workers, "WINDOW_S", np.inf)  # else a slow machine makes a decision of its own
    plain = batches()
    reader = read(batches(), range(3, STOP), threads=2, workers="auto", prefetch=3)
    blocks: Any = reader._blocks
    found, workers = [], []
    for n, batch in enumerate(reader, 3):
        found.append(content(batch))
        workers.append(blocks.workers)
        if n in (6, 14, 26):
            assert blocks.change({6: 1, 14: 2, 26: 0}[n], n + 4)
    reader.close()
    assert found == [content(plain[n]) for n in range(3, STOP)]
    assert workers == [0] * (10 - 3) + [1] * 8 + [2] * 12 + [0] * (STOP - 30)
    assert runs.ends_workers()


class Broken(BlockIterator[Any]):
    """Workers that cannot start."""

    def __init__(self, error):
        self.error = error

    def __next__(self):
        raise self.error

    def close(self):
        pass


@pytest.mark.parametrize("error", [RuntimeError("cannot pickle this"), OSError("too many open files")])
def test_workers_that_cannot_start_leave_the_threads(error, caplog):
    blocks: Any = Changeable(lambda first, workers: Broken(error) if workers else Numbers(first, 0, 3, []), 0, STOP)
    assert blocks.change(2, 7)
    assert [n for n in range(STOP // 2 + 3) for n, _ in _next(blocks)] == list(range(STOP))
    blocks.close()
    assert f"workers cannot start: {error}" in caplog.text


@pytest.mark.parametrize("at_once", [True, False])
def test_more_workers_that_cannot_start_leave_the_former_number(at_once, caplog):
    error, log = OSError("too many open files"), []

    def open_blocks(first, workers):
        if workers < 4:
            return Numbers(first, workers, 3, log)
        if at_once:
            raise error
        return Broken(error)

    blocks: Any = Changeable(open_blocks, 0, STOP)
    assert blocks.change(2, 4)
    found = [each for _ in range(3) for each in _next(blocks)]
    assert blocks.workers == 2
    for _ in range(2):
        assert blocks.change(4, blocks.next_batch + 4) != at_once
        found += [each for _ in range(3) for each in _next(blocks)]
    found += [each for _ in range(STOP) for each in _next(blocks)]
    blocks.close()
    assert found == [(n, 0 if n < 4 else 2) for n in range(STOP)]
    assert [entry[:2] for entry in log] == [("open", 0), ("open", 2), ("close", 0), ("close", 2)]
    assert blocks.failed and caplog.text.count(f"workers cannot start: {error}") == 1


def test_data_error_of_new_workers_is_raised(caplog):
    def open_blocks(first, workers):
        if workers:
            raise DataError("the source is gone")
        return Numbers(first, 0, 3, [])

    blocks: Any = Changeable(open_blocks, 0, STOP)
    with pytest.raises(DataError, match="the source is gone"):
        blocks.change(2, 7)
    blocks.close()


def _next(blocks):
    try:
        return next(blocks)[0]
    except StopIteration:
        return []


def test_error_of_the_first_batch_of_new_workers_is_raised():
    class Bad(BlockIterator[Any]):
        def __next__(self):
            raise DataError("Example 7: gone.")

        def close(self):
            pass

    blocks: Any = Changeable(lambda first, workers: Bad() if workers else Numbers(first, 0, 7, []), 0, STOP)
    assert blocks.change(1, 7)
    next(blocks)
    with pytest.raises(DataError, match="Example 7"):
        next(blocks)
    blocks.close()


def settle(choice, rate, needed, cores, free_memory=lambda workers: 0.9):
    """Runs a reader whose speed is `rate(workers)` until the choice is settled, and returns all numbers of workers."""
    numbers = [0]
    for _ in range(20):
        workers = numbers[-1]
        speed = min(needed, rate(workers))
        idle = max(0.0, cores - max(1, workers))
        window = Window(speed, 1 - speed / needed if rate(workers) < needed else 0.0, idle, free_memory(workers))
        numbers.append(choice.next(workers, window))
        if choice.settled and numbers[-1] == numbers[-2]:
            break
    return numbers


@examples(40)
@given(
    alone=st.floats(1, 100),
    scaling=st.floats(0.2, 1.0),
    threads=st.floats(0.5, 4.0),
    needed=st.floats(1, 1000),
    cores=st.integers(1, 32),
)
def test_choice_ends_with_a_number_that_is_about_as_fast_as_any_that_was_tried(alone, scaling, threads, needed, cores):
    def rate(workers):
        return alone * (threads if workers == 0 else workers**scaling)

    choice = Choice(most=cores if cores > 1 else 0)
    numbers = settle(choice, rate, needed, cores)
    last = min(needed, rate(numbers[-1]))
    assert max(numbers) <= cores
    assert all(
        auto_workers.FASTER * last >= 0.999 * min(needed, rate(number)) or last >= 0.95 * needed for number in numbers
    )
    if rate(0) >= needed:
        assert set(numbers) == {0}


def test_choice_does_not_grow_without_idle_cores_or_memory():
    for window in (Window(10.0, 0.5, 0.1, 0.9), Window(10.0, 0.5, 4.0, 0.15)):
        choice = Choice(most=8)
        assert choice.next(0, window) == 0
        assert choice.settled


def test_choice_grows_once_a_core_is_idle_again():
    choice = Choice(most=8)
    assert choice.next(0, Window(10.0, 0.5, 0.1, 0.9)) == 0
    assert choice.next(0, Window(10.0, 0.5, 3.0, 0.9)) == 2


def test_choice_shrinks_where_memory_is_short_and_does_not_grow_again():
    choice = Choice(most=8)
    assert choice.next(0, Window(10.0, 0.5, 8.0, 0.9)) == 2
    assert choice.next(2, Window(20.0, 0.5, 6.0, 0.9)) == 4
    assert choice.next(4, Window(40.0, 0.5, 4.0, 0.05)) == 2
    assert choice.settled == "the memory of the host is short"
    assert choice.next(2, Window(20.0, 0.5, 6.0, 0.9)) == 2
    assert choice.next(2, Window(20.0, 0.5, 6.0, 0.01)) == 1


class Slow(Numbers):
    """Takes time on a fake clock: 1 s for a block in threads, a third of that with 2 workers."""

    clock: ClassVar = [0.0]

    def __next__(self):
        self.clock[0] += {0: 1.0, 2: 1 / 3}.get(self.workers, 1.0)
        return super().__next__()


@pytest.fixture
def clock(monkeypatch):
    """The fake clock of `Slow`, on a host with two idle cores and free memory, for 400 batches."""
    clock = [0.0]
    monkeypatch.setattr(auto_workers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(auto_workers, "usable_cores", lambda: 2)
    monkeypatch.setattr(auto_workers, "idle_seconds", lambda: clock[0])
    monkeypatch.setattr(auto_workers, "free_share", lambda: 0.9)
    monkeypatch.setattr(Slow, "clock", clock)
    monkeypatch.setitem(globals(), "STOP", 400)
    return clock


@pytest.mark.usefixtures("clock")
def test_auto_finds_the_number_while_it_reads_and_says_it_once():
    log, said = [], []
    blocks: Any = AutoBlocks(
        lambda first, workers: Slow(first, workers, 1, log), 0, 400, threads=1, prefetch=2, on_message=said.append
    )
    found = [n for _ in range(400) for n, _ in next(blocks)[0]]
    blocks.close()
    assert found == list(range(400))
    assert [entry for entry in log if entry[0] == "open"][1:] == [("open", 2, 10 + 2 * 2 + 4)]
    assert blocks.workers == 2
    assert said == ["data.workers=auto: 2 workers (the fastest number that was tried)"]


@pytest.mark.usefixtures("clock")
def test_auto_does_not_try_again_where_workers_cannot_start():
    opened, said = [], []

    def open_blocks(first, workers):
        opened.append(workers)
        return Broken(RuntimeError("cannot pickle this")) if workers else Slow(first, 0, 1, [])

    blocks: Any = AutoBlocks(open_blocks, 0, 400, threads=1, prefetch=2, on_message=said.append)
    assert [n for _ in range(400) for n, _ in next(blocks)[0]] == list(range(400))
    blocks.close()
    assert opened == [0, 2]
    assert said == ["data.workers=auto: no workers, 1 thread (more workers cannot start)"]
