import pytest

from engine.base.errors import DataError
from engine.datasets.output_lock import OutputLock, lock_path, locked
from engine.datasets.shards import ShardJob, ShardWriter
from tests.datasets.scans import Scans


def test_lock_is_valid_while_it_is_held_and_its_file_disappears(tmp_path):
    out = tmp_path / "scans.arrayrecord"
    with locked(out) as lock:
        lock.check()
        with pytest.raises(DataError, match="another process writes this dataset"), locked(out):
            pass
        lock.check()  # the refused call has not changed the file
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="does not see the files that the command writes"):
        lock.check()


def test_worker_that_outlives_its_call_replaces_no_shard_of_a_later_one(tmp_path):
    out = tmp_path / "scans.arrayrecord"

    class Overtaken(Scans):
        """A source during whose reading another call takes the lock."""

        def __getitem__(self, index):
            if index == 1:
                lock_path(out).write_text("another call")
            return super().__getitem__(index)

    with locked(out) as lock, pytest.raises(DataError, match="another process writes this dataset now, so this one st"):
        ShardWriter(Overtaken(3), "stop", lock=lock)(ShardJob(out, 0, 3), lambda count: None)
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_call_is_taken_over(tmp_path):
    out = tmp_path / "scans.arrayrecord"
    lock_path(out).write_text("a killed call")
    with locked(out) as lock:
        lock.check()
        assert lock != OutputLock(out, "a killed call")
