"""Only regular files are read, and only whole ones of a limited size."""

import os

import pytest

from engine.base.text_file import read_text


def test_text_of_a_regular_file_is_returned(tmp_path):
    (tmp_path / "file").write_text("é\n", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_text(tmp_path / "file") == read_text(tmp_path / "link") == "é\n"


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
