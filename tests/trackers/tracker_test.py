"""Trackers of a config: they are built before the run starts, and a real run sends its rows."""

import json

import pytest

import engine
from engine.base.errors import ConfigError
from engine.config.dev_run import tiny
from engine.observe.writer import build_trackers, open_writer
from tests import runs
from tests.trackers.made import make_run
from tests.trackers.recorded import Recorded, reset, sent

TRACKER = {"log.trackers.mine.target": "tests.trackers.recorded.Recorded"}


def config(**settings):
    return runs.config(**{name.replace(".", "__"): value for name, value in (TRACKER | settings).items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps that was resumed to 8."""
    reset()
    path = tmp_path_factory.mktemp("tracked") / "run"
    for total in ("4 steps", "8 steps"):
        engine.train(config(**{"train.total": total}), workdir=path, accept_schedule_change=True)
    return path


def test_resumed_run_continues_the_run_of_the_tracker_and_sends_no_step_twice(run):
    assert [step for step, _ in sent("train/loss")] == list(range(1, 9))
    assert [step for step, _ in sent("heldout/accuracy")] == [4, 8]
    starts = [call for call in Recorded.calls if call[0] == "start"]
    assert starts == [("start", None, "run"), ("start", "run-1", "run")]
    assert [call for call in Recorded.calls if call[0] == "finish"] == [("finish", "done", "")] * 2


def test_values_are_those_of_the_metrics_file(run):
    assert dict(sent("train/loss")) == runs.rows(run)
    kept = json.loads((run / "trackers" / "recorded.json").read_text())["here"]
    assert kept["offset"] == (run / "metrics.jsonl").stat().st_size and kept["state"] == "done"


def test_target_that_is_no_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"log.trackers.mine.target.* returned no tracker: its methods are open, add"):
        build_trackers(config(**{"log.trackers.mine.target": "tests.zoo.source"}))


def test_missing_package_ends_a_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracked = config(**{"log.trackers.mine.target": "engine.trackers.mlflow_tracker.MLflow"})
    with pytest.raises(ConfigError, match=r"mlflow is not installed, .* Install it: pip .*\[mlflow\]"):
        engine.train(tracked, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Unopened(Recorded):
    """A tracker that cannot be opened."""

    def open(self, directory):
        raise RuntimeError("can't start new thread")


def test_trackers_end_if_a_later_one_cannot_be_opened(tmp_path):
    reset()
    two = config(**{"log.trackers.other.target": "tests.trackers.tracker_test.Unopened"})
    with pytest.raises(RuntimeError), open_writer(make_run(tmp_path / "run"), two):
        pass
    name, state, reason = Recorded.calls[-1]
    assert (name, state) == ("finish", "failed") and reason.startswith("RuntimeError: can't start new thread")


def test_fast_dev_run_has_no_trackers():
    assert tiny(config(), lambda config: 1).log.trackers == {}
