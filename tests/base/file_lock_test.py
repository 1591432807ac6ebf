"""Locks of files exclude each other between open files, as they do between processes."""

import io
import os

import pytest

from engine.base.file_lock import lock, lock_if_supported


def test_exclusive_lock_excludes_all_others_until_the_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as first, open(path) as second:
        assert lock(first)
        assert not lock(second, wait=False)
        assert not lock_if_supported(second, shared=True, wait=False)
        first.close()
        assert lock(second, wait=False)


def test_shared_locks_exclude_only_an_exclusive_one(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as first, open(path) as second, open(path) as third:
        assert lock(first, shared=True) and lock(second, shared=True)
        assert not lock(third, wait=False)


def test_file_without_locks_counts_as_unlocked_only_if_they_are_optional():
    with io.FileIO("/dev/null", opener=lambda path, flags: os.open(path, os.O_PATH)) as file:
        with pytest.raises(OSError, match="Bad file descriptor"):  # the kernel locks no O_PATH descriptor
            lock(file)
        assert lock_if_supported(file)
