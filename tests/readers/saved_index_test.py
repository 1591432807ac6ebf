import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers import saved_index
from engine.readers.saved_index import file_indexes, index_paths
from tests import damages

FORM = "test-1"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"abc")
    return str(tmp_path / "data" / "a")


class Builder:
    """Builds the index of a file, its bytes, and counts the calls."""

    calls = 0

    def __call__(self, path):
        self.calls += 1
        with open(path, "rb") as file:
            return {"bytes": np.frombuffer(file.read(), np.uint8)}


def content(path, build, form=FORM):
    (found,) = file_indexes([path], form, build)
    return found["bytes"].tobytes()


def test_index_is_built_once_for_each_state_of_the_file(path):
    build = Builder()
    assert [content(path, build), content(path, build)] == [b"abc", b"abc"]
    assert build.calls == 1
    with open(path, "wb") as file:
        file.write(b"abcd")
    assert content(path, build) == b"abcd"
    os.utime(path, ns=(0, 5))
    assert content(path, build) == b"abcd"
    assert build.calls == 3
    content(path, build, "test-2")
    assert build.calls == 4


def test_empty_index_is_not_saved(path):
    with open(path, "wb"):
        pass
    build = Builder()
    assert [content(path, build), content(path, build)] == [b"", b""]
    assert build.calls == 2


@pytest.mark.parametrize("damage", damages.ALL)
def test_damaged_index_is_named_and_built_again(path, damage, capsys):
    build = Builder()
    content(path, build)
    place = index_paths(path, FORM)[0]
    damage(place)
    assert [content(path, build), content(path, build)] == [b"abc", b"abc"]
    assert build.calls == 2
    text = f"warning: {place}: damaged index of {path}, which is built again: "
    assert capsys.readouterr().err.count(text) == 1


def test_swapped_indexes_are_built_again(path):
    other = os.path.join(os.path.dirname(path), "b")
    with open(other, "wb") as file:
        file.write(b"xyz")
    for each in (path, other):
        os.utime(each, ns=(0, 5))  # as of files that a program unpacked
    build = Builder()
    assert [content(path, build), content(other, build)] == [b"abc", b"xyz"]
    damages.swap(*(index_paths(each, FORM)[0] for each in (path, other)))
    assert [content(path, build), content(other, build)] == [b"abc", b"xyz"]
    assert build.calls == 4


def test_pipe_in_place_of_the_lock_is_not_waited_for(path):
    place = index_paths(path, FORM)[0].with_suffix(".lock")
    place.parent.mkdir()
    os.mkfifo(place)
    assert content(path, Builder()) == b"abc"


def test_index_of_a_read_only_folder_is_in_the_cache_folder(path):
    folder = os.path.dirname(path)
    with open(os.path.join(folder, ".convoy_index"), "w"):  # a file, so that the folder cannot be made, even by root
        pass
    build = Builder()
    assert [content(path, build), content(path, build)] == [b"abc", b"abc"]
    assert build.calls == 1
    assert index_paths(path, FORM)[1].is_file()


def test_other_users_may_read_the_index(path):
    umask = os.umask(0o022)
    try:
        content(path, Builder())
    finally:
        os.umask(umask)
    assert index_paths(path, FORM)[0].stat().st_mode & 0o777 == 0o644


def test_source_works_without_any_place_for_the_index(path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data" / "a"))
    with open(os.path.join(os.path.dirname(path), ".convoy_index"), "w"):
        pass
    build = Builder()
    assert [content(path, build), content(path, build)] == [b"abc", b"abc"]
    assert build.calls == 2


def test_many_readers_may_build_the_index_at_once(path, monkeypatch):
    second = threading.Event()  # set when another reader waits for the lock, or builds the index as well
    wait = saved_index._Progress.wait
    monkeypatch.setattr(saved_index._Progress, "wait", lambda *arguments: (second.set(), wait(*arguments)))

    class SlowBuilder(Builder):
        def __call__(self, path):
            found = super().__call__(path)
            if self.calls > 1:
                second.set()
            assert second.wait(60)
            return found

    found, build = [], SlowBuilder()
    threads = [threading.Thread(target=lambda: found.append(content(path, build))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"abc"] * 8
    assert build.calls == 1
    place = index_paths(path, FORM)[0]
    assert os.listdir(place.parent) == [place.name]


def test_process_waits_for_another_one_until_it_ends(path, monkeypatch, capsys):
    monkeypatch.setattr(saved_index, "REPORT_S", -1)
    lock = index_paths(path, FORM)[0].with_suffix(".lock")
    lock.parent.mkdir()
    hold = f"import fcntl, time; f = open({str(lock)!r}, 'ab'); fcntl.flock(f, 2); print(flush=True); time.sleep(600)"
    found, build, lines = [], Builder(), ""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        thread = threading.Thread(target=lambda: found.append(content(path, build)))
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not lines and time.monotonic() < deadline:
                time.sleep(0.01)
                lines = capsys.readouterr().err
            assert f"indexing files: 0 of 1. Waiting for another process that indexes {path}." in lines
            assert build.calls == 0
        finally:
            holder.kill()
            thread.join()
    assert found == [b"abc"]


def test_indexes_are_in_the_order_of_the_files(tmp_path):
    paths = []
    for i in range(30):
        paths.append(str(tmp_path / f"{i}"))
        (tmp_path / f"{i}").write_bytes(bytes([i]))
    found = file_indexes(paths, FORM, Builder())
    assert [int(index["bytes"][0]) for index in found] == list(range(30))


def test_unreadable_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nothing: cannot be read .No such file"):
        file_indexes([str(tmp_path / "nothing")], FORM, Builder())
