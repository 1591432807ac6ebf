"""`log.report`: a run writes its report when it is done or has failed, and never fails because of it."""

import json
import re

import pytest

from engine.api.train import train
from engine.report import at_end
from engine.run import status
from engine.run.directory import RunDirectory
from tests import runs
from tests.experiments.made import make_run


def data_of(run) -> dict:
    html = (run / "report.html").read_text()
    return json.loads(re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0])["runs"][0]


@pytest.mark.slow
def test_run_writes_its_report_at_its_end(tmp_path):
    train(runs.config(log__report=True, train__total="2 steps"), workdir=tmp_path / "run")
    found = data_of(tmp_path / "run")
    assert (found["state"], found["step"]) == ("done", 2)
    assert found["curves"]["training/loss"]["s"] == [1, 1]


@pytest.mark.slow
def test_failed_run_writes_its_report(tmp_path):
    hooks = {"broken": {"target": "tests.report.at_end_test.Broken", "every": "1 step"}}
    config = runs.config(log__report=True, train__total="2 steps", hooks=hooks)
    with pytest.raises(OSError, match="the disk is gone"):
        train(config, workdir=tmp_path / "run")
    found = data_of(tmp_path / "run")
    assert found["state"] == "failed"
    assert "the disk is gone" in found["warnings"][0][1]


def test_run_that_fails_before_it_has_a_config_writes_none_and_warns_of_nothing(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError), at_end.reported(directory_of(tmp_path / "run", "failed"), "none"):
        raise ZeroDivisionError
    assert caplog.text == ""


def directory_of(run, state: str) -> RunDirectory:
    run.mkdir()
    status.write(run / "status.json", status.Status(state=state))
    return RunDirectory(run)


@pytest.mark.parametrize("state", ["preempted", "interrupted", "training"])
def test_run_that_was_asked_to_stop_writes_none(state, tmp_path):
    directory = RunDirectory(make_run(tmp_path / "run", state=state))
    with at_end.reported(directory, "none"):
        pass
    assert not (tmp_path / "run/report.html").exists()


def test_other_files_are_neither_searched_nor_written_at_the_end_of_a_run(tmp_path):
    run = make_run(tmp_path / "run")
    with at_end.reported(RunDirectory(run), "none"):
        pass
    assert not data_of(run)["lineage"]["isSearched"]
    assert list(tmp_path.iterdir()) == [run]


def test_report_that_fails_is_a_warning_and_keeps_the_error_of_the_run(tmp_path, caplog):
    directory = directory_of(tmp_path / "run", "failed")
    directory.config.mkdir()
    with pytest.raises(ZeroDivisionError), at_end.reported(directory, "none"):
        raise ZeroDivisionError
    assert "report.html: the report is not written (" in caplog.text
    assert "convoy report writes it" in caplog.text


class Broken:
    """A hook that fails."""

    def run(self, trainer, state, step):
        raise OSError("the disk is gone")
