"""Paths for libraries that misread some characters."""

import pytest

from engine.storage.plain_path import plain_path


def test_path_is_unchanged_unless_it_has_other_characters(tmp_path):
    with plain_path(tmp_path) as path:
        assert path == tmp_path
    folder = tmp_path / "a\nb"
    folder.mkdir()
    with plain_path(folder) as path:
        (path / "file").write_text("x")
    assert (folder / "file").read_text() == "x"
    with pytest.raises(FileNotFoundError), plain_path(tmp_path / "[missing]"):
        pass
