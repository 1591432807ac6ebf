"""Files that change: what counts as a change, who reports it, and how a block of reading ends."""

import os
import pickle
import time

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data import file_states
from engine.data.file_states import FileChangedError, FileStates, FileWatch, states_of
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, BaseSource


class Files(ArraySource):
    """A source of files."""

    def __init__(self, paths):
        super().__init__({"x": np.zeros(2)})
        self.file_states = FileStates(paths)


@pytest.fixture
def paths(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"content")
        os.utime(tmp_path / name, (1e9, 1e9))
    return [tmp_path / name for name in "ab"]


@pytest.fixture
def source(paths):
    return Files([str(path) for path in paths])


@pytest.fixture
def period(monkeypatch):
    monkeypatch.setattr(file_states, "PERIOD_S", 0.001)


def overwrite(path):
    path.write_bytes(b"CONTENT")


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"CONTENT")
    os.utime(other, (1e9, 1e9))
    other.rename(path)


CHANGES = [
    (overwrite, r"/a was changed at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \(7 bytes\)"),
    (lambda path: path.write_bytes(b"longer content"), r"/a was changed at .* \(7 -> 14 bytes\)"),
    (lambda path: path.unlink(), r"/a was removed"),
    (replace, r"/a was replaced by another file of the same size and modification time"),
]


@pytest.mark.parametrize("change, text", CHANGES)
def test_change_is_noticed_at_an_open_in_any_process(source, paths, change, text):
    states = pickle.loads(pickle.dumps(source)).file_states
    states.check(str(paths[0]))
    change(paths[0])
    with pytest.raises(
        FileChangedError, match=f"{text} while the run reads it, noticed at 20.* Restore the file"
    ) as found:
        states.check(str(paths[0]))
    assert found.value.kind == "DataError"
    states.check(str(paths[1]))


def test_reading_a_file_is_no_change(source, paths):
    paths[0].read_bytes()
    os.chmod(paths[0], 0o400)
    os.utime(paths[0], (time.time(), 1e9))  # the time of the last reading
    source.file_states.check(str(paths[0]))


def test_new_inode_of_a_mounted_bucket_is_no_change(source, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(file_states, "MOUNTS", tmp_path / "mounts")
    replace(paths[0])
    (tmp_path / "mounts").write_text(f"disk / ext4 rw 0 0\ns3fs {tmp_path} fuse.s3fs rw 0 0\n")
    source.file_states.check(str(paths[0]))
    (tmp_path / "mounts").write_text(f"s3fs / fuse.s3fs rw 0 0\ndisk {tmp_path} ext4 rw 0 0\n")
    with pytest.raises(FileChangedError, match="was replaced"):
        source.file_states.check(str(paths[0]))


def test_states_of_many_files_are_read_at_their_first_open(paths, monkeypatch):
    monkeypatch.setattr(file_states, "MOST_AT_START", 1)
    states = FileStates([str(path) for path in paths])
    overwrite(paths[1])
    states.check(str(paths[1]))
    paths[1].unlink()
    with pytest.raises(FileChangedError):
        states.check(str(paths[1]))


@pytest.mark.parametrize("slow", [0.0, 1.0])
def test_states_of_a_slow_disk_are_read_in_threads(paths, slow, monkeypatch):
    monkeypatch.setattr(file_states, "FEW", 1)
    monkeypatch.setattr(file_states, "SLOW_S", slow)
    states = FileStates([str(path) for path in paths])
    assert states.paths == [str(path) for path in paths]
    for path in paths:
        overwrite(path)
        with pytest.raises(FileChangedError):
            states.check(str(path))


def test_states_of_sources_within_sources_are_found_once(source):
    mixture = Mixture({"one": source, "two": ArraySource({"x": np.zeros(2)})}, {"one": 0.5, "two": 0.5})
    assert states_of([mixture.limited(2), source]) == [source.file_states]


def wait(watch):
    """Calls `check` as the loop does, until it has something to report."""
    end = time.monotonic() + 60
    while not watch._changes:
        assert time.monotonic() < end
    watch.check()


def test_thread_notices_a_change(source, paths, period):
    with pytest.raises(FileChangedError, match="/b was changed at"), FileWatch([source], print) as watch:
        watch.check()
        overwrite(paths[1])
        wait(watch)


def test_tolerated_changes_are_reported_each_once(source, paths, period):
    said = []
    source.file_states.tolerant = True
    with FileWatch([source], said.append) as watch:
        for change in (overwrite, lambda path: path.unlink()):
            change(paths[0])
            source.file_states.check(str(paths[0]))
            wait(watch)
    assert [text.split(" while")[0].split(" at")[0] for text in said] == [
        f"warning: {paths[0]} was changed",
        f"warning: {paths[0]} was removed",
    ]
    assert said[0].endswith("The run trains on (data.on_change=warn).")


def test_error_of_changed_data_names_the_change(source, paths):
    text = r"/a was changed at .* The first error was: record 3 is damaged"
    with pytest.raises(FileChangedError, match=text), FileWatch([source], print):
        overwrite(paths[0])
        raise DataError("record 3 is damaged")
    with pytest.raises(DataError, match=r"^record 3 is damaged$"), FileWatch([source], print):
        raise DataError("record 3 is damaged")


def test_change_just_before_the_end_is_noticed(source, paths):
    with pytest.raises(FileChangedError, match="/a was changed at"), FileWatch([source], print):
        overwrite(paths[0])
    overwrite(paths[1])
    with pytest.raises(KeyboardInterrupt), FileWatch([source], print):
        raise KeyboardInterrupt  # the run was asked to end, so this is its reason


def test_many_processes_share_the_comparisons(paths, period, monkeypatch):
    monkeypatch.setattr(file_states, "FEWEST", 1)
    source = Files([str(path) for path in paths])
    watches = [FileWatch([source], print, process, 1000) for process in (0, 999)]
    assert [(watch._count, watch._files[watch._next][1][-1]) for watch in watches] == [(1, "a"), (1, "b")]
    overwrite(paths[1])
    with pytest.raises(FileChangedError, match="/b was changed"), watches[0] as watch:
        wait(watch)


def test_source_without_files_is_not_watched():
    assert states_of([ArraySource({"x": np.zeros(2)}), BaseSource()]) == []
