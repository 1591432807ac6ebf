import dataclasses
import functools
import json
import subprocess
import sys

import pytest

from engine.base.errors import RunError
from engine.run import status
from engine.run.directory import RunDirectory, cooldown_workdir, split_step
from engine.run.lease import DirectoryGone, LeaseLost, acquire
from engine.run.owner import Owner
from engine.run.status import Status


def make_run(path):
    """Returns a run directory after one attempt."""
    run = RunDirectory.open(path)
    run.write_config_text("name: digits\n")
    status.write(run.status, Status(state="preempted", step=5, attempt=run.attempt))
    run.checkpoints.mkdir()
    run.close()
    return run


def open_fresh(path):
    """Returns the directory of `open(fresh=True)`, closed again."""
    with RunDirectory.open(path, fresh=True) as run:
        return run


def test_paths_of_the_run_files():
    run = RunDirectory("runs/digits")
    paths = [run.config, run.status, run.metrics, run.log, run.checkpoints, run.tensorboard, run.profile]
    assert [str(path.relative_to("runs/digits")) for path in paths] == [
        "config.txt", "status.json", "metrics.jsonl", "log.txt", "checkpoints", "tensorboard", "profile",
    ]  # fmt: skip
    assert str(run) == "runs/digits"


def test_error_of_the_storage_is_explained_by_a_directory_that_was_moved(tmp_path):
    run = RunDirectory.open(tmp_path / "run")
    with pytest.raises(DirectoryGone, match=f"moved to {tmp_path}/elsewhere"), run:
        run.path.rename(tmp_path / "elsewhere")
        run.status.write_text("")
    run = RunDirectory.open(tmp_path / "other")
    with pytest.raises(FileNotFoundError), run:
        (run.path / "missing").read_text()


def test_constructor_creates_no_files(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert not run.exists() and run.attempt == 0
    assert list(tmp_path.iterdir()) == []


def test_open_creates_parents_and_only_the_lease(tmp_path):
    with RunDirectory.open(tmp_path / "a" / "run") as run:
        assert [path.name for path in run.path.iterdir()] == ["lease"]
    assert run.attempt == 1 and not run.exists() and run.moved_to is None


def test_each_open_increments_the_attempt(tmp_path):
    for attempt in (1, 2, 3):
        with RunDirectory.open(tmp_path) as run:
            assert run.attempt == attempt
            status.write(run.status, Status(state="training", attempt=run.attempt))


def test_second_job_cannot_open_a_directory_until_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.run.lease.acquire", functools.partial(acquire, grace_s=0.1))
    with RunDirectory.open(tmp_path / "run") as run:
        for fresh in (False, True):
            with pytest.raises(RunError, match="another job trains here"):
                RunDirectory.open(tmp_path / "run", fresh=fresh)
        run.lease.verify()
        number = next((tmp_path / "run/lease").iterdir())
        number.rename(number.with_name("9.json"))
        number.with_name("9.json").write_text("")
        run.lease.check()
        with pytest.raises(LeaseLost, match="another job has taken over this run"):
            run.lease.verify()
    with RunDirectory(tmp_path / "run").lease.writing():  # not opened: no lease to lose
        pass


def test_failed_open_releases_the_lease(tmp_path):
    (tmp_path / "status.json").write_text("no status")
    for _ in range(2):
        with pytest.raises(RunError, match="is not the status of a run"):
            RunDirectory.open(tmp_path)


def test_open_reports_takeover_from_a_dead_owner(tmp_path):
    (tmp_path / "lease").mkdir()
    gone = dataclasses.replace(Owner(), started="1")
    (tmp_path / "lease/4.json").write_text(json.dumps({**dataclasses.asdict(gone), "beat": "3"}))
    with RunDirectory.open(tmp_path) as run:
        assert run.messages == [f"{gone} ended without releasing this run; this job takes it over"]


def test_config_text_round_trip_makes_the_run_exist(tmp_path):
    make_run(tmp_path)
    assert RunDirectory(tmp_path).exists()
    assert RunDirectory(tmp_path).read_config_text() == "# 1 settings\nname: digits\n"


def test_reading_config_of_a_directory_without_run_raises(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory, it has no config\.txt\. Give the --workdir"):
        RunDirectory(tmp_path).read_config_text()
    make_run(tmp_path / "wide")
    for path in (tmp_path, tmp_path / "wid"):
        with pytest.raises(RunError, match=rf"of an earlier `convoy train`\. Runs in {tmp_path}: wide\.$"):
            RunDirectory(path).read_config_text()


def test_fresh_moves_the_earlier_run_and_reports_the_target(tmp_path):
    path = tmp_path / "run"
    make_run(path)
    fresh = open_fresh(path)
    old = RunDirectory(tmp_path / "run.old-1")
    assert fresh.moved_to == old.path
    assert fresh.messages == [f"the earlier run was moved to {old.path}"]
    assert (path / "lease/2.json").exists() and not (old.path / "lease").exists()  # belongs to the path
    assert old.read_config_text() == "# 1 settings\nname: digits\n"
    assert status.read(old.status).step == 5
    assert not fresh.exists() and fresh.attempt == 1

    make_run(path)
    assert open_fresh(path).moved_to == tmp_path / "run.old-2"
    assert (tmp_path / "run.old-1" / "config.txt").exists()


def test_fresh_moves_leftovers_without_a_config(tmp_path):
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    assert open_fresh(tmp_path / "run").moved_to == tmp_path / "run.old-1"


def make_untrained(path):
    """A start that failed before its first step."""
    with RunDirectory.open(path) as run:
        run.write_config_text("name: digits\n")
        run.log.write_text("ConfigError: ...\n")
        run.checkpoints.mkdir()
        run.metrics.touch()
        for name in ("lineage.json", "names.json.gz", "report.html"):
            (run.path / name).write_text("of the data, and of the error")
        status.write(run.status, status.Status(state="failed"))
    return run


@pytest.mark.parametrize("has_status", [True, False])
def test_fresh_replaces_a_start_that_trained_no_step(tmp_path, has_status):
    run = make_untrained(tmp_path / "run")
    if not has_status:
        run.status.unlink()
    fresh = open_fresh(run.path)
    assert fresh.messages == ["the earlier start, which trained no step, was replaced"]
    assert fresh.moved_to is None and fresh.attempt == 1
    assert {path.name for path in run.path.iterdir()} == {"goodput.jsonl", "lease"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("what", ["step", "checkpoint", "metrics", "notes", "config", "damaged status", "link"])
def test_fresh_moves_a_start_with_anything_of_value(tmp_path, what):
    run = make_untrained(tmp_path / "run")
    match what:
        case "step":
            status.write(run.status, status.Status(state="failed", step=1))
        case "checkpoint":
            (run.checkpoints / "0").mkdir()
        case "metrics":
            run.metrics.write_text("{}\n")
        case "notes":
            (run.path / "notes.txt").write_text("mine")
        case "config":
            for file in (run.status, run.log):
                file.unlink()
        case "damaged status":
            run.status.write_text("{")
        case "link":
            run.checkpoints.rmdir()
            (tmp_path / "disk").mkdir()
            run.checkpoints.symlink_to(tmp_path / "disk")
    assert open_fresh(run.path).moved_to == tmp_path / "run.old-1"


def test_fresh_does_not_move_a_directory_without_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert open_fresh(tmp_path).moved_to is None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_fresh_follows_symlinks_so_that_the_run_stays_on_its_disk(tmp_path):
    make_run(tmp_path / "disk" / "run")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    assert open_fresh(tmp_path / "run").moved_to == tmp_path / "disk" / "run.old-1"
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "run").is_dir()


def test_open_raises_for_an_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: cannot be written \(Not a directory\).*--workdir=DIR"):
        RunDirectory.open(tmp_path / "file" / "run")
    with pytest.raises(RunError, match=r"/proc/run: cannot be written"):
        RunDirectory.open("/proc/run")


def test_run_package_does_not_import_jax():
    code = "import sys, engine.run.directory, engine.run.log; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("text", "run", "step", "workdir"),
    [
        ("runs/a", "runs/a", None, "runs/a-cooldown"),
        ("runs/a/", "runs/a/", None, "runs/a-cooldown"),
        ("runs/a@40", "runs/a", 40, "runs/a-cooldown-40"),
        ("runs/a/checkpoints/40/", "runs/a", 40, "runs/a-cooldown-40"),
        ("s3://b/me@home/a@7", "s3://b/me@home/a", 7, "s3://b/me@home/a-cooldown-7"),
        ("me@home/a", "me@home/a", None, "me@home/a-cooldown"),
    ],
)
def test_run_with_a_step_is_split(text, run, step, workdir):
    assert split_step(text) == (run, step)
    assert cooldown_workdir(run, step) == workdir


def test_word_in_place_of_a_step_is_refused(tmp_path):
    (tmp_path / "config.txt").touch()
    with pytest.raises(RunError, match=r"found 'latest' after @. Write the number of a step, or leave out @latest"):
        split_step(f"{tmp_path}@latest")
