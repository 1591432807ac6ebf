"""Copies of a run directory whose job still runs. The owner of each original is this process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import RunError
from engine.run import lease_copy
from engine.run.lease import acquire


@pytest.fixture
def run(tmp_path):
    """A run directory in which this process trains."""
    path = tmp_path / "run"
    (path / "checkpoints" / "5").mkdir(parents=True)
    (path / "metrics.jsonl").write_text("{}\n")
    (path / "checkpoints" / "5" / "manifest.json").write_text("{}\n")
    owned = acquire(path / "lease")
    yield path
    owned.release()


def refusal(run: Path) -> str:
    """Returns the error text of a second job; fails if the job gets the lease."""
    with pytest.raises(RunError) as error:
        acquire(run / "lease", grace_s=0.1)
    return str(error.value)


def test_copy_of_a_running_run_gets_its_own_lease_and_the_original_keeps_its_lease(run, tmp_path):
    owner = next((run / "lease").iterdir()).read_bytes()
    subprocess.run(["cp", "-a", run, tmp_path / "copy"], check=True)
    copy = acquire(tmp_path / "copy" / "lease", grace_s=0)
    assert copy.takeover.startswith(f"this directory is a copy: process {os.getpid()} on host ")
    assert copy.takeover.endswith(f" trains in {run}; this job trains here under its own lease")
    assert next((run / "lease").iterdir()).name == "1.json" and copy.path.name == "2.json"
    assert copy.owner.id.encode() not in owner
    assert "another job trains here" in refusal(run)
    assert "another job trains here" in refusal(tmp_path / "copy")
    copy.release()


def test_copy_of_a_copy_gets_its_own_lease(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", tmp_path / "second")
    leases = [acquire(tmp_path / name / "lease") for name in ("copy", "second")]
    for owned in leases:
        owned.verify()
        owned.release()


def rename(run: Path) -> Path:
    return run.rename(run.with_name("renamed"))


def rename_and_copy_back(run: Path) -> Path:
    """The open files of the job are in the renamed directory."""
    renamed = rename(run)
    shutil.copytree(renamed, run)
    return renamed


def copy_at_the_old_path(run: Path) -> Path:
    rename_and_copy_back(run)
    return run


def link(run: Path) -> Path:
    run.with_name("link").symlink_to(run)
    return run.with_name("link")


def hard_links(run: Path) -> Path:
    subprocess.run(["cp", "-al", run, run.with_name("hard")], check=True)
    return run.with_name("hard")


def one_hard_link(run: Path) -> Path:
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").hardlink_to(run / "metrics.jsonl")
    return copy


def shared_checkpoints(run: Path) -> Path:
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").symlink_to(run / "checkpoints")
    return copy


def checkpoints_on_another_disk(run: Path) -> Path:
    """The copy has the same symbolic link."""
    (run / "checkpoints").rename(run.with_name("disk"))
    (run / "checkpoints").symlink_to(run.with_name("disk"))
    return Path(shutil.copytree(run, run.with_name("copy"), symlinks=True))


def original_deleted(run: Path) -> Path:
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    run.rename(run.with_name("elsewhere"))
    return copy


@pytest.mark.parametrize(
    "change",
    [
        rename, rename_and_copy_back, copy_at_the_old_path, link, hard_links, one_hard_link, shared_checkpoints,
        checkpoints_on_another_disk, original_deleted,
    ],
)  # fmt: skip
def test_directory_that_may_share_files_with_the_original_is_refused(run, change):
    directory = change(run)
    text = refusal(directory)
    if change in (link, copy_at_the_old_path):
        assert "another job trains here" in text
    else:
        assert f"trains in {run}. This directory is either the same one under another path, or a copy." in text
        assert f"stop it (kill {os.getpid()}). If it is a copy that shares no files with it, delete" in text
        assert text.endswith(f" {directory / 'lease'}. Then start again.")


def test_directory_that_another_job_has_taken_over_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    (path,) = (run / "lease").iterdir()
    (run / "lease" / "2.json").write_text(path.read_text().replace('"id": "', '"id": "0'))
    assert "or a copy" in refusal(tmp_path / "copy")


FOLDERS = st.tuples(st.builds(os.makedev, st.integers(0, 2), st.integers(0, 2)), st.integers(1, 2))


@given(first=FOLDERS, second=FOLDERS)
def test_directories_differ_only_on_one_file_system_or_two_disks(first, second):
    """The same directory of a network file system may have two device numbers on one host."""
    same_file_system = first[0] == second[0]
    two_disks = not same_file_system and os.major(first[0]) > 0 and os.major(second[0]) > 0
    assert lease_copy._are_different(first, second) == (two_disks or (same_file_system and first[1] != second[1]))
