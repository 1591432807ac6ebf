"""Finished runs are sent from their files, once; mistakes are one sentence."""

import pytest

from engine.base.errors import ConfigError, RunError
from engine.cli.main import main
from engine.run import status
from engine.trackers.push import KINDS, arguments_of, push, tracker_of
from tests.trackers.made import make_run, results_row, training_row
from tests.trackers.recorded import Recorded, reset, sent

MINE = "tests.trackers.recorded.Recorded"


def test_second_push_sends_nothing_and_the_end_is_passed_on(tmp_path, capsys):
    reset()
    directory = make_run(tmp_path / "a", training_row(1, 1.0), results_row(1), state="failed")
    for _ in range(2):
        assert main(["runs", "push", str(directory.path), f"--to={MINE}"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{directory}: sent 2 rows", f"{directory}: nothing is missing"]
    assert len(sent("train/loss")) == len(sent("heldout/figures/0")) == 1
    assert Recorded.calls[-1] == ("finish", "failed", "a reason")


def test_failing_tracker_is_an_error_without_its_password(tmp_path):
    reset()
    directory = make_run(tmp_path / "a", training_row(1, 1.0))
    with pytest.raises(
        RunError, match=r"recorded \(here\) has failed: ConnectionError: no answer .*Push again"
    ) as found:
        list(push([str(directory.path)], MINE, {"failures": 1}))
    assert "secret" not in str(found.value)


def test_run_in_progress_is_refused(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 1.0))
    status.write(directory.status, status.Status(state="training"))
    with pytest.raises(RunError, match=r"the run is in progress. Push it after its end"):
        list(push([str(directory.path)], "csv", {}))


def test_unknown_trackers_and_flags_that_one_does_not_take_are_refused():
    with pytest.raises(ConfigError, match=r"--to=mlfow: no such tracker. Did you mean mlflow\?"):
        tracker_of("mlfow", {})
    with pytest.raises(ConfigError, match="is no tracker"):
        tracker_of("tests.zoo.source", {})
    with pytest.raises(ConfigError, match=r"--uri: --to=wandb takes none. Set WANDB_BASE_URL"):
        arguments_of("wandb", "http://server", None)
    assert arguments_of("mlflow", "sqlite:///a.db", "b") == {"uri": "sqlite:///a.db", "experiment": "b"}
    assert all(arguments_of(name, None, None) == {} for name in KINDS)
