"""Reports of one attempt: `status.json` at every moment, the log, and the end of the attempt."""

import contextlib
import json

import pytest

from engine.base.errors import DataError
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.exit_status import status_of
from engine.loop.preemption import Preempted
from engine.observe.reporter import Reporter
from engine.observe.summary import Summary
from engine.run.directory import RunDirectory
from engine.run.lease import LeaseLost

ROW = {"step": 3, "attempt": 1, "time": 1.5, "loss": 0.5}


@pytest.fixture
def directory(tmp_path):
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


def status(directory):
    return json.loads(directory.status.read_text())


def start(reporter, directory, first_step=0):
    reporter.start(
        10, first_step, lambda: Summary(
            state="training", name="zoo", directory=directory, step=7, total_steps=10, metrics={"loss": 0.25}
        ),
    )  # fmt: skip


def test_status_is_written_before_the_run_starts(directory):
    with Reporter(directory, "zoo", "none"):
        now = status(directory)
    assert (now["state"], now["step"], now["total_steps"], now["attempt"]) == ("starting", 0, None, 1)


def test_start_writes_the_total_and_the_first_step_to_the_status(directory):
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory, first_step=5)
        now = status(directory)
        assert (now["state"], now["step"], now["total_steps"]) == ("starting", 5, 10)


def test_restart_keeps_the_total_of_the_attempt_before(directory):
    """Evaluations of the run need it, also if the restart fails before it knows its total."""
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
    with Reporter(directory, "zoo", "none"):
        now = status(directory)
    assert (now["state"], now["total_steps"]) == ("starting", 10)


@pytest.fixture
def every_row(monkeypatch):
    """Writes the status for every row, without a minimum interval."""
    monkeypatch.setattr("engine.observe.reporter._STATUS_S", 0.0)


def test_status_is_not_written_for_rows_in_quick_succession(directory, monkeypatch):
    monkeypatch.setattr("engine.observe.reporter._STATUS_S", 1e9)
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
        reporter.row(ROW)
        assert status(directory)["metrics"] == {}
        reporter.phase("evaluating")
        assert (status(directory)["step"], status(directory)["metrics"]) == (3, {"loss": 0.5})


def test_row_updates_step_and_metrics_of_the_status(directory, every_row):
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
        reporter.row(ROW)
        reporter.row({"step": 4, "attempt": 1, "time": 2.5, "accuracy": 1.0})
        now = status(directory)
    assert (now["state"], now["step"], now["metrics"]) == ("training", 4, {"loss": 0.5, "accuracy": 1.0})


def test_status_shows_the_evaluating_phase(directory):
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
        reporter.row(ROW)
        states = []
        for phase in ("evaluating", "training"):
            reporter.phase(phase)
            states.append(status(directory)["state"])
    assert states == ["evaluating", "training"]


def test_status_names_the_slowest_process_until_it_is_not_slow_any_more(directory):
    with Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
        sentences = [status(directory)["slowest"]]
        for text in ("process 2 (host a) is the slowest: its hooks take 40 ms longer per step", ""):
            reporter.slowest(text)
            sentences.append(status(directory)["slowest"])
    assert sentences == ["", "process 2 (host a) is the slowest: its hooks take 40 ms longer per step", ""]


def test_messages_before_start_are_only_logged(directory, capsys):
    with Reporter(directory, "zoo", "lines") as reporter:
        reporter.message("looking for devices")
        start(reporter, directory)
        reporter.row(ROW)
        shown = capsys.readouterr().err.splitlines()
    assert shown == ["step 3/10  loss 0.5"]
    log = [line.split(" ", 1)[1] for line in directory.log.read_text().splitlines()]
    assert log == ["looking for devices", "step 3/10  loss 0.5"]


def test_moved_aside_run_is_logged(directory, tmp_path):
    Reporter(directory, "zoo", "none").__exit__(None, None, None)
    (directory.checkpoints / "5").mkdir(parents=True)
    directory.close()
    with RunDirectory.open(directory.path, fresh=True) as fresh, Reporter(fresh, "zoo", "none") as reporter:
        start(reporter, fresh)
    assert f"the earlier run was moved to {tmp_path / 'run.old-1'}" in fresh.log.read_text()


def test_job_that_lost_its_lease_does_not_write_the_status(directory):
    with pytest.raises(LeaseLost), Reporter(directory, "zoo", "none") as reporter:
        start(reporter, directory)
        directory.status.write_text("another job's")
        (directory.path / "lease/9.json").write_text("another job's")
        with contextlib.suppress(LeaseLost):
            directory.lease.verify()
        reporter.phase("evaluating")
        directory.lease.check()
    assert directory.status.read_text() == "another job's"
    assert [path.name for path in directory.path.iterdir() if path.suffix == ".tmp"] == []
    assert reporter.summary.state == "failed" and "has taken over this run" in reporter.summary.reason


@pytest.mark.parametrize(
    ("error", "state", "code", "reason"),
    [
        (None, "done", 0, ""),
        (Preempted("asked to stop."), "preempted", 42, "asked to stop."),
        (KeyboardInterrupt(), "interrupted", 130, "KeyboardInterrupt."),
        (DataError("record 3: checksum mismatch."), "failed", 1, "record 3: checksum mismatch."),
        (ZeroDivisionError("division by zero"), "failed", 1, "ZeroDivisionError: division by zero."),
    ],
)
def test_status_and_summary_state_how_the_attempt_ended(directory, error, state, code, reason):
    reporter = Reporter(directory, "zoo", "none")
    start(reporter, directory)
    assert reporter.__exit__(type(error) if error else None, error, None) is None  # does not suppress the error
    now = status(directory)
    assert (now["state"], now["exit_code"], now["reason"]) == (state, code, reason)
    assert (now["step"], now["total_steps"], now["metrics"]) == (7, 10, {"loss": 0.25})
    assert (reporter.summary.state, reporter.summary.reason, status_of(error)) == (state, reason, code)


def test_summary_is_printed_unless_progress_is_none(directory, capsys):
    for mode in ("lines", "none"):
        with Reporter(directory, "zoo", mode) as reporter:
            start(reporter, directory)
        assert ("zoo: done at step 7/10" in capsys.readouterr().err) == (mode == "lines")


def test_error_before_start_is_in_the_status_and_not_printed(directory, capsys):
    with pytest.raises(DataError), Reporter(directory, "zoo", "lines"):
        raise DataError("no examples.")
    now = status(directory)
    assert (now["state"], now["reason"], now["total_steps"]) == ("failed", "no examples.", None)
    assert capsys.readouterr().err == ""


def test_secondary_process_writes_nothing_but_keeps_the_summary(directory, monkeypatch, capsys):
    monkeypatch.setattr("engine.cluster.identity._joined", ProcessInfo(1, 2, "127.0.0.1:1"))
    with pytest.raises(Preempted), Reporter(directory, "zoo", "lines") as reporter:
        start(reporter, directory)
        reporter.row(ROW)
        reporter.phase("evaluating")
        reporter.message("a sentence")
        raise Preempted("stopped")
    assert (reporter.summary.state, reporter.summary.reason) == ("preempted", "stopped")
    assert reporter.summary.metrics == {"loss": 0.25}
    assert [path.name for path in directory.path.iterdir()] == ["lease"]
    assert capsys.readouterr() == ("", "")
