"""Finding runs below a folder: what counts as a run, and an index that is never wrong and may be lost."""

import os
import subprocess
import sys

import pytest

from engine.base.errors import RunError
from engine.experiments import index
from engine.experiments.record import read_record
from engine.run import lease, status
from tests.experiments.made import make_run


def paths(found: index.Found) -> list[str]:
    return [run.path for run in found.runs]


def test_runs_are_found_at_any_depth_and_other_folders_are_named(tmp_path):
    make_run(tmp_path / "b")
    make_run(tmp_path / "group" / "deep" / "a")
    (tmp_path / ".hidden").mkdir()
    make_run(tmp_path / ".hidden" / "c")
    make_run(tmp_path / "b" / "checkpoints" / "inside")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    os.symlink(tmp_path, tmp_path / "group" / "loop")
    found = index.find_runs(tmp_path)
    assert paths(found) == ["b", "group/deep/a"]
    assert found.others == ["notes"]


def test_run_directory_itself_is_a_list_of_one(tmp_path):
    run = make_run(tmp_path / "a")
    assert paths(index.find_runs(run)) == ["."]
    assert not (run / index.INDEX).exists()


def test_only_runs_that_changed_are_read_again(tmp_path, monkeypatch):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    index.find_runs(tmp_path)
    read = []

    def recording(folder, path):
        read.append(path)
        return read_record(folder, path)

    monkeypatch.setattr(index, "read_record", recording)
    assert len(index.find_runs(tmp_path).runs) == 2 and read == []
    status.write(second / "status.json", status.Status(state="failed", reason="out of memory"))
    assert [run.state for run in index.find_runs(tmp_path).runs] == ["done", "failed"] and read == ["b"]
    (first / "config.txt").unlink()
    assert index.find_runs(tmp_path).runs[0].config == {} and read == ["b", "a"]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0, "runs": {}}', '{"version": 2, "runs": {"a": {}}}'])
def test_damaged_index_is_replaced(tmp_path, content):
    make_run(tmp_path / "a")
    (tmp_path / index.INDEX).write_text(content)
    assert paths(index.find_runs(tmp_path)) == ["a"]
    assert '"a"' in (tmp_path / index.INDEX).read_text()


def test_config_of_another_program_is_no_run(tmp_path):
    make_run(tmp_path / "a")
    for name, text in (("foreign", "colour: red\n"), ("binary", "\x00\x01"), ("cut", "# 95 settings\n"), ("old", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.txt").write_text(text)
    (tmp_path / "old" / "config.txt").write_text("name: x\ntask.target: models.digits.Digits\n")
    found = index.find_runs(tmp_path)
    assert paths(found) == ["a", "cut", "old"] and found.others == ["binary", "foreign"]


def test_run_that_was_removed_leaves_the_list(tmp_path):
    make_run(tmp_path / "a")
    gone = make_run(tmp_path / "b")
    assert paths(index.find_runs(tmp_path)) == ["a", "b"]
    gone.rename(tmp_path / "c")
    assert paths(index.find_runs(tmp_path)) == ["a", "c"]


def test_killed_run_is_listed_as_killed_without_a_change_of_its_files(tmp_path):
    run = tmp_path / "a"
    code = (
        "import os, sys; from pathlib import Path; from engine.run import lease, status; "
        "from tests.experiments.made import make_run; run = make_run(Path(sys.argv[1]), state='training', step=3); "
        "lease.acquire(run / 'lease'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, run], check=False)
    [found] = index.find_runs(tmp_path).runs
    assert found.state == "killed" and "ended without a verdict after step 3" in found.problem
    assert status.read(run / "status.json").state == "training"
    assert lease.current_owner(run / "lease") is not None


def test_search_ends_at_its_deadline_and_keeps_the_index(tmp_path):
    make_run(tmp_path / "a")
    index.find_runs(tmp_path)
    before, over = (tmp_path / index.INDEX).read_text(), index.Deadline(0)
    make_run(tmp_path / "b")
    assert paths(index.find_runs(tmp_path, over)) == [] and over.passed
    assert (tmp_path / index.INDEX).read_text() == before
    late = index.Deadline(60)
    assert paths(index.find_runs(tmp_path, late)) == ["a", "b"] and not late.passed


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(RunError, match="nowhere: cannot be read"):
        index.find_runs(tmp_path / "nowhere")


def test_of_a_sweep_only_its_trials_are_searched(tmp_path):
    make_run(tmp_path / "sweep" / "trials" / "0000")
    make_run(tmp_path / "sweep" / "trials" / "0001" / "seed-0")
    for name in ("sweep.json", "journal.log", "logs/trial-0000.log", "decisions/trial-0000.json"):
        (tmp_path / "sweep" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sweep" / name).touch()
    for folder, before in ((tmp_path, "sweep/"), (tmp_path / "sweep", "")):
        found = index.find_runs(folder)
        assert [run.path for run in found.runs] == [f"{before}trials/0000", f"{before}trials/0001/seed-0"]
        assert found.others == []
