"""What happened to a run directory that is no longer at its path."""

import shutil
from contextlib import closing

import pytest

from engine.run.presence import Presence


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.txt").touch()
    return folder


def test_moved_directory_is_found(run, tmp_path):
    with closing(Presence(run)) as presence:
        run.rename(tmp_path / "elsewhere")
        assert f"{run}: the run directory was moved to {tmp_path}/elsewhere while" in presence.what_happened()
        run.mkdir()  # another directory at the path
        assert f"{run}: the run directory was moved to {tmp_path}/elsewhere while" in presence.what_happened()


def test_removed_directory_is_reported_as_removed(run):
    with closing(Presence(run)) as presence:
        shutil.rmtree(run)
        assert f"{run}: the run directory was removed while" in presence.what_happened()


def test_directory_without_its_files_is_reported(run):
    with closing(Presence(run)) as presence:
        assert f"{run}: files of the run directory were removed while" in presence.what_happened()


def test_directory_that_replaced_the_run_on_purpose_is_the_run(run, tmp_path):
    with closing(Presence(run)) as presence:
        run.rename(tmp_path / "run.old-1")
        run.mkdir()
        presence.refresh()
        run.rename(tmp_path / "elsewhere")
        assert f"moved to {tmp_path}/elsewhere" in presence.what_happened()
