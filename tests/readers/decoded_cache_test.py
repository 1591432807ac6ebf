"""A cache of decoded arrays stays below its bound, forgets the oldest file, and starts empty in another process."""

import pickle

import numpy as np
import pytest

from engine.readers.decoded_cache import DecodedCache


def eight_bytes(path):
    return np.full(2, int(path), np.float32)


class Counted:
    """Reads arrays of 8 bytes and counts the reads."""

    def __init__(self):
        self.paths = []

    def __call__(self, path):
        self.paths.append(path)
        return eight_bytes(path)


def test_arrays_of_the_last_files_are_kept_within_the_bound():
    read = Counted()
    cache = DecodedCache(read, 16)
    for path in ("1", "2", "1", "3", "1", "2"):  # 3 replaces 2, which was used before 1
        assert cache(path).tolist() == [int(path)] * 2
        assert cache.bytes <= 16
    assert read.paths == ["1", "2", "3", "2"]


@pytest.mark.parametrize("most_bytes", [0, 7])
def test_an_array_above_the_bound_is_read_each_time(most_bytes):
    read = Counted()
    cache = DecodedCache(read, most_bytes)
    assert cache("1").tolist() == cache("1").tolist()
    assert read.paths == ["1", "1"] and cache.bytes == 0


def test_shared_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        DecodedCache(eight_bytes, 100)("1")[0] = 5


def test_another_process_starts_with_an_empty_cache():
    cache = DecodedCache(eight_bytes, 100)
    cache("1")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.bytes == 0 and copy("1").tolist() == [1, 1] and copy.bytes == 8
