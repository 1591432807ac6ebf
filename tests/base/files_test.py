"""Only regular files are read, and only whole ones of a limited size."""

import io
import os
import subprocess
import sys
import tempfile
import tracemalloc

import pytest

from engine.base import host
from engine.base.files import (
    lock,
    lock_if_supported,
    read_checked,
    read_text,
    replacing,
    set_aside,
    temporary_folder,
    write_checked,
)
from tests import damages


def test_text_of_a_regular_file_is_returned(tmp_path):
    (tmp_path / "file").write_text("é\n", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_text(tmp_path / "file") == read_text(tmp_path / "link") == "é\n"


def test_small_file_is_read_with_little_memory(tmp_path):
    text = "é1\r\n" * 40_000  # more than one piece
    (tmp_path / "large").write_text(text, encoding="utf-8", newline="")
    assert read_text(tmp_path / "large") == text.replace("\r\n", "\n")
    (tmp_path / "small").write_text("1")
    tracemalloc.start()
    try:
        assert read_text(tmp_path / "small") == "1"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_pipe_device_and_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(OSError, match="not a regular file"):
            read_text(tmp_path / name)


def test_file_that_is_too_large_or_no_text_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff" * 11)
    with pytest.raises(OSError, match="it has 11 bytes, allowed are 10"):
        read_text(tmp_path / "file", 10)
    with pytest.raises(OSError, match="not UTF-8 text"):
        read_text(tmp_path / "file")
    assert read_text(tmp_path / "file", errors="replace")


def test_content_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    path, temporary, calls = tmp_path / "a", tmp_path / "a.tmp", []
    path.write_bytes(b"old")
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(temporary.read_bytes()) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *args: calls.append("rename") or rename(*args))
    with replacing(path, temporary, lambda: calls.append(path.read_bytes())) as file:
        file.write(b"new")
    assert calls == [b"new", b"old", "rename"]
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_failure_keeps_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail():
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), replacing(path, tmp_path / "a.tmp", fail) as file:
        file.write(b"new")
    with pytest.raises(KeyboardInterrupt), replacing(path, tmp_path / "a.tmp"):
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), replacing(path, tmp_path / "gone" / "a.tmp"):
        pass
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_mode_applies_from_the_creation_of_the_file(tmp_path):
    path, temporary = tmp_path / "a", tmp_path / "a.tmp"
    with replacing(path, temporary, mode=0o600) as file:
        assert temporary.stat().st_mode & 0o777 == 0o600
        file.write(b"new")
    assert path.stat().st_mode & 0o777 == 0o600


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


@pytest.mark.parametrize("damage", damages.ALL)
def test_damaged_entry_is_refused_and_set_aside(damage, tmp_path, capsys):
    path = tmp_path / "entry"
    write_checked(path, b"content")
    assert read_checked(path) == b"content" and os.listdir(tmp_path) == ["entry"]
    damage(path)
    with pytest.raises(OSError, match=r"its checksum is not|it has no checksum|not a regular file") as error:
        read_checked(path)
    set_aside(path, "entry, which is made again", error.value)
    set_aside(path, "entry, which is made again", error.value)  # as another process that has read it
    [aside] = os.listdir(tmp_path)
    assert aside.startswith("entry.") and aside.endswith(".damaged")
    text = f"warning: {path}: damaged entry, which is made again: {error.value.strerror}. It is now {aside}.\n"
    assert capsys.readouterr().err == text


def test_entry_belongs_to_the_name_of_its_file(tmp_path):
    write_checked(tmp_path / "a", b"content")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(OSError, match="its checksum is not that of its content"):
        read_checked(tmp_path / "b")


def marks() -> dict[str, str]:
    """Returns the marks of processes by name."""
    machine, boot, pid, ticks = host.process_mark().split("-")
    ended = subprocess.Popen(["true"])
    ended.wait()
    other = "0" * 8  # with a probability of 1 in 2**32 not another one
    return {
        "living": host.process_mark(),
        "ended": f"{machine}-{boot}-{ended.pid}-{ticks}",
        "its pid is used again": f"{machine}-{boot}-{pid}-1{ticks}",
        "of another host or container": f"{other}-{boot}-{ended.pid}-{ticks}",
        "before a reboot": f"{machine}-{other}-{ended.pid}-{ticks}",
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell the start of a process")
@pytest.mark.parametrize("namespace", [host.HOST_NAMESPACE, "pid:[1]"])
def test_only_what_ended_processes_have_left_of_the_same_file_is_removed(namespace, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "pid_namespace", lambda: namespace)
    monkeypatch.setattr(host, "machine_id", lambda: "m")
    for who, mark in marks().items():
        (tmp_path / f".a.{mark}-70000.tmp").write_text(who)
        (tmp_path / f".a.{mark}-70001.tmp").mkdir()
        (tmp_path / f".a.{mark}-70001.tmp" / "spool").write_text(who)
        (tmp_path / f".b.{mark}-70000.tmp").write_text("of another file")
    (tmp_path / ".a.tmp").write_text("of the user")
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    left = {path.read_text() for path in tmp_path.glob(".a.*-70000.tmp")}
    rebooted = set() if namespace == host.HOST_NAMESPACE else {"before a reboot"}
    assert left == {"living", "of another host or container"} | rebooted
    assert {path.read_text() for path in tmp_path.glob(".a.*/spool")} == left
    assert len(list(tmp_path.glob(".b.*"))) == 5 and (tmp_path / ".a.tmp").exists()


def test_name_of_a_temporary_file_is_short_enough(tmp_path):
    with replacing(tmp_path / ("ä" * 127)) as file:  # 254 of 255 bytes
        file.write(b"new")
    assert os.listdir(tmp_path) == ["ä" * 127]


def test_temporary_folder_is_removed_by_the_next_process_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = """
import os, signal
from engine.base.files import temporary_folder
with temporary_folder("test") as folder:
    (folder / "file").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    [left] = tmp_path.iterdir()
    with temporary_folder("other") as other:
        assert left.exists()
        with temporary_folder("test") as folder:
            assert set(tmp_path.iterdir()) == {folder, other}
    assert not list(tmp_path.iterdir())
