import pickle
import threading

import pytest

from engine.readers.blocks import BlockCache


class Reads:
    """Counts the reads of blocks, each of 10 bytes."""

    def __init__(self):
        self.keys = []

    def __call__(self, *key):
        self.keys.append(key)
        return f"block {key}", 10


def test_latest_blocks_are_kept_up_to_the_limit():
    reads = Reads()
    cache = BlockCache(25, reads)
    for key in (1, 2, 1, 3, 1, 2):  # 3 replaces 2, and then 2 replaces 3
        assert cache.get("a", key) == f"block {('a', key)}"
    assert [key for _, key in reads.keys] == [1, 2, 3, 2]


def test_block_above_the_limit_is_kept_alone():
    reads = Reads()
    cache = BlockCache(5, reads)
    for key in (1, 1, 2, 2, 1):
        cache.get(key)
    assert reads.keys == [(1,), (2,), (1,)]


def test_error_is_raised_and_not_kept():
    answers = iter([OSError("gone"), ("block", 1)])

    def read(key):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cache = BlockCache(5, read)
    with pytest.raises(OSError, match="gone"):
        cache.get(0)
    assert cache.get(0) == "block"


def test_threads_that_need_one_block_read_it_once():
    begun, release, calls = threading.Event(), threading.Event(), []

    def read(key):
        calls.append(key)
        begun.set()
        assert release.wait(60)
        return "block", 1

    cache, found = BlockCache(5, read), []
    threads = [threading.Thread(target=lambda: found.append(cache.get(7))) for _ in range(4)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    release.set()
    for thread in threads:
        thread.join(60)
    assert found == ["block"] * 4
    assert calls == [7]


def test_pickled_cache_arrives_empty():
    cache = BlockCache(100, Reads())
    cache.get(1)
    copy = pickle.loads(pickle.dumps(cache))
    copy.get(1)
    assert copy._read.keys == [(1,), (1,)]
