"""A tracker of a run in progress never stops or slows the run, and what it lacks is counted."""

import threading
import time

import numpy as np
import pytest

from engine.base.errors import RunError
from engine.loop.preemption import Preempted
from engine.metrics.results import Curve, Image
from engine.observe.writer import MetricWriter
from engine.run.lease import Lease, LeaseLost
from engine.trackers import live
from tests.trackers.made import make_run, results_row, training_row, write_rows
from tests.trackers.recorded import Recorded, reset, sent


@pytest.fixture(autouse=True)
def _nothing_sent():
    reset()


def train(directory, tracker, *rows, error=None, seconds=20.0):
    """Writes rows as an attempt does that ends with an error."""
    tracker.open(directory)
    with MetricWriter(directory.metrics, None, figures=directory.figures, trackers=[tracker]) as writer:
        for row in rows:
            writer.push(lambda row=row: [row])
    tracker.end(error)
    begin = time.monotonic()
    tracker.join(begin + seconds)
    return time.monotonic() - begin


def test_rows_reach_the_tracker_with_what_their_lines_do_not_hold(tmp_path, caplog):
    directory = make_run(tmp_path / "a")
    train(directory, Recorded(), training_row(1, 1.0), results_row(1))
    assert sent("train/loss") == [(1, 1.0)]
    [(_, image)], [(_, curve)] = sent("heldout/figures/0"), sent("heldout/roc")
    assert isinstance(image, Image) and isinstance(image.pixels, np.ndarray) and isinstance(curve, Curve)
    assert Recorded.calls[-1] == ("finish", "done", "") and not caplog.text


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RunError("a disk"), "failed"),
        (Preempted("stop"), "preempted"),
        (KeyboardInterrupt(), "interrupted"),
        (GeneratorExit(), "interrupted"),
        (ValueError("bug"), "failed"),
    ],
)
def test_end_of_the_attempt_is_passed_on(tmp_path, error, state):
    train(make_run(tmp_path / "a"), Recorded(), error=error)
    assert Recorded.calls[-1][:2] == ("finish", state)


def test_trackers_learn_why_another_thread_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(live.Live, "_forced_until", None)
    monkeypatch.setattr(live, "FORCED_S", 20.0)
    callbacks = []
    monkeypatch.setattr(live.shutdown, "add_exit_callback", callbacks.append)
    for name in ("a", "b"):
        Recorded().open(make_run(tmp_path / name, training_row(1, 1.0)))
    for callback in callbacks:
        callback(RunError("the run hangs"))
    assert [call for call in Recorded.calls if call[0] == "finish"] == [("finish", "failed", "the run hangs")] * 2
    assert len(sent("train/loss")) == 2


def test_failing_tracker_is_one_warning_and_what_is_missing_is_counted_without_the_password(tmp_path, caplog):
    tracker = Recorded("http://server", failures=9)
    train(make_run(tmp_path / "a"), tracker, training_row(1, 1.0), results_row(1))
    first, last = caplog.text.splitlines()
    assert "tracker recorded (http://server) cannot be written: ConnectionError: no answer from http://server" in first
    assert "2 rows of metrics and 1 images were not sent (ConnectionError" in last
    assert last.endswith(f"convoy runs push {tmp_path / 'a'} --to=recorded --uri=http://server")
    assert "secret" not in caplog.text


def test_tracker_that_recovers_has_every_row(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(live, "SEND_S", 0.001)
    tracker = Recorded(failures=3)
    directory = make_run(tmp_path / "a")
    tracker.open(directory)
    with MetricWriter(directory.metrics, None, trackers=[tracker]) as writer:
        for step in range(1, 30):
            writer.push(lambda step=step: [training_row(step, 1.0)])
        assert Recorded.written.wait(20)
    tracker.end(None)
    tracker.join(time.monotonic() + 20)
    assert [step for step, _ in sent("train/loss")] == list(range(1, 30))
    assert caplog.text.count("tracker recorded") == 1


def test_hanging_tracker_delays_the_end_by_the_stated_time_only(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(live, "SILENCE_S", 0.0)
    Recorded.waits.clear()
    try:
        directory = make_run(tmp_path / "a", training_row(1, 1.0))
        seconds = train(directory, Recorded(), *(training_row(step, 1.0) for step in range(2, 50)), seconds=0.2)
    finally:
        Recorded.waits.set()
    assert 0.15 < seconds < 5
    assert caplog.text.count("has not answered for 0 seconds") == 1
    assert "49 rows of metrics and 0 images were not sent (it has not answered in time)" in caplog.text
    assert Recorded.written.wait(20)  # before the next test begins
    for thread in threading.enumerate():
        if thread.name == "convoy-recorded":
            thread.join(20)


def test_curve_beyond_the_bound_waits_in_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "MAX_WAITING", 50_000)
    Recorded.waits.clear()
    try:
        tracker = Recorded()
        tracker.open(make_run(tmp_path / "a", training_row(1, 1.0)))
        assert tracker._live is not None
        for step, points in ((2, 4_000), (3, 1_000), (4, 4_000)):
            x = np.zeros(points)
            tracker.add({"step": step, "time": 0.0, "heldout/roc": Curve(x, x), "heldout/more": np.zeros(points // 2)})
        assert [step for step, _ in tracker._live._waiting] == [3]
    finally:
        Recorded.waits.set()
    tracker.end(None)
    tracker.join(time.monotonic() + 20)


def test_images_beyond_the_bound_are_counted_and_the_rows_are_sent(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(live, "MAX_WAITING", 10)
    directory = make_run(tmp_path / "a")
    train(directory, Recorded(), results_row(1))
    assert sent("heldout/accuracy") == [(1, 0.5)]
    assert "0 rows of metrics and 1 images were not sent (no memory)" in caplog.text


class Lost(Lease):
    """A lease that another job has taken over."""

    def check(self) -> None:
        raise LeaseLost("taken over")


def test_run_that_another_job_has_taken_over_is_left_to_it(tmp_path, caplog):
    directory = make_run(tmp_path / "a", training_row(1, 1.0))
    directory.lease = Lost()
    train(directory, Recorded())
    assert not Recorded.calls and not caplog.text


@pytest.mark.parametrize("rows", [[], [training_row(2, 1.0)]])
def test_run_that_another_job_takes_over_later_is_left_to_it(tmp_path, caplog, rows):
    stored = threading.Event()

    class Held(Lease):
        def replace_text(self, path, text):
            super().replace_text(path, text)
            if "train/loss" in text:
                stored.set()

    directory, tracker = make_run(tmp_path / "a", training_row(1, 1.0)), Recorded()
    directory.lease = Held()
    tracker.open(directory)
    assert stored.wait(20)
    directory.lease = Lost()
    write_rows(directory, *rows)  # by the other job
    tracker.end(LeaseLost("taken over"))
    tracker.join(time.monotonic() + 20)
    assert sent("train/loss") == [(1, 1.0)] and Recorded.calls[-1][0] == "write" and not caplog.text
