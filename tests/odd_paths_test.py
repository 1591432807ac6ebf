"""A run, its commands and its data in folders whose names contain characters that patterns, URLs and UTF-8 reserve."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.base.errors import RunError
from engine.cli.main import main
from engine.cluster import verdict
from engine.config import load
from engine.launch.postmortem import correct_status
from engine.readers.array_record import write_array_record
from engine.run import status
from engine.run.directory import LONGEST_PATH, RunDirectory
from tests import runs, zoo

ODD = os.fsdecode(b"lr=[0.1]*?{}'\"\\ \n \xff ://gs:")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every kind of file."""
    path = tmp_path_factory.mktemp("odd") / ODD / "run"
    settings = dict(log__tensorboard=True, log__examples=True)
    engine.train(runs.config(train__total="2 steps", **settings), workdir=path)
    return path


@pytest.mark.slow
def test_run_writes_all_of_its_files_there(run):
    assert runs.status(run)["state"] == "done"
    for folder in ("tensorboard", "examples", "checkpoints/2/state"):
        assert any((run / folder).iterdir()), folder
    assert os.listdir(run.parents[2]) == [run.parts[-3]]


@pytest.mark.slow
def test_commands_read_the_run(run, tmp_path, capfd):
    assert main(["train", f"--config={run}", f"--workdir={run}"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["checkpoints", "verify", str(run)]) == 0
    assert main(["goodput", str(run)]) == 0
    output = capfd.readouterr()
    assert "step        2  good" in output.out and "Traceback" not in output.err
    out = tmp_path / ODD.replace("/", "")
    done = runs.convoy("export", str(run), f"--out={out}")
    assert done.returncode == 0 and "\\udcff" in done.stdout, done.stderr
    assert load_file(out)
    assert {path.name for path in tmp_path.iterdir()} == {
        out.name,
        f"{out.name}.lineage.json",
        f"{out.name}.MODEL_CARD.md",
    }


@pytest.mark.slow
def test_warm_start_reads_the_run(run, tmp_path):
    config = runs.config(train__total="1 step", init__checkpoint=str(run), evaluations={}, checkpoint__every=None)
    engine.train(config, workdir=tmp_path)
    shown = str(run).encode("utf-8", "backslashreplace").decode()
    assert f"initialized 6 arrays from {shown}/checkpoints/2" in (tmp_path / "log.txt").read_text("utf-8")
    assert load(str(tmp_path)).init.checkpoint == str(run)


def test_status_of_a_killed_run_is_corrected_in_a_folder_that_is_not_utf8(tmp_path, monkeypatch):
    folder = tmp_path / "\udcff"
    folder.mkdir()
    status.write(folder / "status.json", status.Status(state="training", pid=7))
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    verdict.record_status_path(folder / "status.json")
    correct_status(tmp_path, [7], 137, "killed")
    assert json.loads((folder / "status.json").read_text())["reason"] == "killed"


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_path_that_no_file_can_have_is_refused(path):
    with pytest.raises(RunError, match="contains a character that no file name can contain"):
        RunDirectory.open(path)


def test_path_that_leaves_no_space_for_file_names_is_refused(tmp_path):
    path = tmp_path.joinpath(*["x" * 200] * (LONGEST_PATH // 200))
    with pytest.raises(RunError, match=f"this path has [0-9]+ bytes.* Allowed are {LONGEST_PATH}"):
        RunDirectory.open(path)
    assert not list(tmp_path.iterdir())


def test_data_of_a_folder_with_wildcards_in_its_name_trains(tmp_path):
    folder = tmp_path / "lr=[0.1]?*"
    write_array_record(zoo.source(), str(folder / "a.arrayrecord"))
    data = dict(target="engine.readers.array_record.ArrayRecordSource", pattern=f"{folder}/*.arrayrecord")
    config = runs.config(train__total="1 step", data=data, evaluations={}, checkpoint__every=None)
    assert np.isfinite(engine.train(config, workdir=tmp_path / "run").metrics["loss"])
