import os

import pytest

from engine.base.atomic_file import replacing


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
