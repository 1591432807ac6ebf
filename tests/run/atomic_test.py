import os
import stat

import pytest

from engine.base.errors import RunError
from engine.run.atomic import write_text
from engine.run.lease import LeaseLost


def test_write_text_replaces_the_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first, and longer")
    write_text(path, "second µ\n")
    assert path.read_text(encoding="utf-8") == "second µ\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_file_has_default_permissions(tmp_path):
    path, usual = tmp_path / "a.txt", tmp_path / "usual.txt"
    write_text(path, "x")
    usual.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_unwritable_path_error_suggests_workdir(tmp_path):
    with pytest.raises(RunError, match=r"gone/a\.txt: cannot be written \(No such file.*\)\. Choose.*--workdir=DIR"):
        write_text(tmp_path / "gone" / "a.txt", "x")


def test_error_in_before_rename_keeps_the_old_file(tmp_path):
    path, seen = tmp_path / "file.txt", []

    def lose_lease():
        seen.append([file.name for file in tmp_path.iterdir()])
        raise LeaseLost("another job's")

    write_text(path, "old")
    with pytest.raises(LeaseLost):
        write_text(path, "new", lose_lease)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert len(seen[0]) == 2  # called as late as possible, when the new text is on the disk
