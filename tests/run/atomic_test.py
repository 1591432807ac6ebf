import os
import stat

import pytest

from engine.config.errors import RunError
from engine.run.atomic import write_text
from engine.run.lease import LeaseLost


def test_replaces_the_text_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first, and longer")
    write_text(path, "second µ\n")
    assert path.read_text(encoding="utf-8") == "second µ\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_file_has_the_usual_permissions_so_that_others_may_read_it(tmp_path):
    path, usual = tmp_path / "a.txt", tmp_path / "usual.txt"
    write_text(path, "x")
    usual.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_place_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    with pytest.raises(RunError, match=r"gone/a\.txt: cannot be written \(No such file.*--workdir=DIR"):
        write_text(tmp_path / "gone" / "a.txt", "x")


def test_what_may_not_be_written_any_more_leaves_the_old_file(tmp_path):
    path, seen = tmp_path / "file.txt", []

    def taken():
        seen.append([file.name for file in tmp_path.iterdir()])
        raise LeaseLost("another job's")

    write_text(path, "old")
    with pytest.raises(LeaseLost):
        write_text(path, "new", taken)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert len(seen[0]) == 2  # asked as late as possible, when the new text is on the disk
