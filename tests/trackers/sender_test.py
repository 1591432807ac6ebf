"""Rows are sent once: by later calls, after errors, in later attempts and after a rollback."""

import pytest

from engine.trackers import sender as sender_module
from engine.trackers.sender import Sender
from tests.trackers.made import make_run, training_row, write_rows
from tests.trackers.recorded import Recorded, reset, sent


@pytest.fixture(autouse=True)
def _nothing_sent():
    reset()


def test_later_sender_continues_the_same_run_and_sends_what_is_new(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 1.0), training_row(2, 0.5))
    first = Sender(Recorded(), directory)
    assert first.unsent() == 2
    first.send()
    first.finish("failed", "why")
    assert first.is_complete("failed") and not first.is_complete("done")
    write_rows(directory, training_row(3, 0.25, attempt=2))
    second = Sender(Recorded(), directory)
    assert second.unsent() == 1 and not second.is_complete("failed")
    second.send()
    assert (second.rows, sent("train/loss")) == (1, [(1, 1.0), (2, 0.5), (3, 0.25)])
    assert [call for call in Recorded.calls if call[0] == "start"] == [("start", None, "a"), ("start", "run-1", "a")]


def test_repeated_steps_are_sent_once(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 1.0), training_row(2, 0.5))
    Sender(Recorded(), directory).send()
    write_rows(directory, *(training_row(step, 0.1 * step, attempt=2) for step in (2, 3)))
    Sender(Recorded(), directory).send()
    assert sent("train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(0.3))]


def test_repeated_steps_of_one_call_are_sent_once(tmp_path):
    steps = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)]
    directory = make_run(tmp_path / "a", *(training_row(step, 1.0 / attempt, attempt) for step, attempt in steps))
    Sender(Recorded(), directory).send()
    assert sent("train/loss") == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_repeated_steps_are_sent_again_to_a_tracker_that_replaces_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorded, "replaces", True)
    directory = make_run(tmp_path / "a", training_row(1, 1.0), training_row(2, 0.5), training_row(2, 0.25, attempt=2))
    Sender(Recorded(), directory).send()
    assert sent("train/loss") == [(1, 1.0), (2, 0.5), (2, 0.25)]


def test_rows_of_a_failed_call_are_sent_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sender_module, "ROWS", 2)
    directory = make_run(tmp_path / "a", *(training_row(step, 1.0) for step in range(1, 6)))
    sender = Sender(Recorded(failures=1), directory)
    with pytest.raises(ConnectionError):
        sender.send()
    assert sender.unsent() == 5
    sender.send()
    assert [step for step, _ in sent("train/loss")] == [1, 2, 3, 4, 5]


def test_run_that_was_created_before_an_error_is_continued(tmp_path, monkeypatch):
    directory = make_run(tmp_path / "a", training_row(1, 1.0))

    def start(self, run):
        started.append(self.kept.get("run"))
        self.kept.setdefault("run", "created")
        if len(started) < 3:
            raise ConnectionError("no space for artifacts")

    started = []
    monkeypatch.setattr(Recorded, "start", start)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            Sender(Recorded(), directory).send()
    Sender(Recorded(), directory).send()
    assert started == [None, "created", "created"] and sent("train/loss") == [(1, 1.0)]


def test_another_destination_or_a_new_run_of_the_tracker_receives_all_rows(tmp_path, monkeypatch):
    directory = make_run(tmp_path / "a", training_row(1, 1.0))
    Sender(Recorded(), directory).send()
    Sender(Recorded("there"), directory).send()
    assert len(sent("train/loss")) == 2
    monkeypatch.setattr(Recorded, "start", lambda self, run: self.kept.update(run="new"))
    Sender(Recorded(), directory).send()
    assert len(sent("train/loss")) == 3
