import contextlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.base.errors import DataError
from engine.data.file_states import FileChangedError, FileStates
from engine.readers import record_files
from engine.readers.record_files import RecordFiles


@pytest.fixture
def files(tmp_path):
    """20 files; file i has i % 3 records, and the content `i` four times."""
    paths = [tmp_path / str(i) for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i] * 4))
    names = [str(path) for path in paths]
    return RecordFiles(names, [i % 3 for i in range(20)], FileStates(names))


def test_records_are_numbered_in_the_order_of_the_files(files):
    assert len(files) == 19
    assert [files.locate(i) for i in (0, 1, 2, 3, 18)] == [(1, 0), (2, 0), (2, 1), (4, 0), (19, 0)]
    assert files.name(2).startswith("record 1 of ") and files.name(2).endswith("/2")
    for index in (-1, 19):
        with pytest.raises(IndexError):
            files.locate(index)


def open_files(files):
    """Returns how many descriptors of this process belong to the files."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed by another thread
            found += os.readlink(f"/proc/self/fd/{descriptor}") in files.paths
    return found


def test_threads_read_more_files_than_may_be_open(files, monkeypatch):
    monkeypatch.setattr(record_files, "MOST_OPEN", 2)
    files = pickle.loads(pickle.dumps(files))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: files.read(i % 20, 1, 2), range(400)))
    assert found == [bytes([i % 20] * 2) for i in range(400)]
    assert open_files(files) <= 2


def test_pickled_copy_opens_the_files_again(files):
    files.read(3, 0, 1)
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(3, 0, 4) == bytes([3] * 4)
    assert len(copy) == 19


def test_short_and_missing_files_are_data_errors(files):
    with pytest.raises(DataError, match=r"/5 ends at byte 4, before byte 5. Copy the file again"):
        files.read(5, 1, 4)
    os.unlink(files.paths[6])
    with pytest.raises(DataError, match=r"/6: cannot be read .No such file"):
        files.read(6, 0, 1)


def test_file_that_has_changed_is_not_opened(files):
    copy = pickle.loads(pickle.dumps(files))
    assert files.read(5, 0, 4) == bytes([5] * 4)
    os.utime(files.paths[5], ns=(0, 0))
    assert files.read(5, 0, 4) == bytes([5] * 4)  # open already: a `FileWatch` notices the change
    with pytest.raises(FileChangedError, match=r"/5 was changed at .* \(4 bytes\) while the run reads it"):
        copy.read(5, 0, 4)
