"""The folder of temporary runs is removed at the end, also after an error."""

import tempfile

import pytest

from engine.tuning.folder import shared_folder


def test_folder_exists_during_the_block_and_is_removed_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what TMPDIR gives a new process
    with pytest.raises(ZeroDivisionError), shared_folder() as folder:
        assert folder.is_dir() and folder.parent == tmp_path
        (folder / "file").write_text("")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
