"""Files of lines: what is added, after an end of any kind, and where the disk refuses it."""

import json

import pytest

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import RunError
from engine.run.jsonl import Lines


def texts(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_process_and_attempt_adds_to_a_file_of_its_process(tmp_path):
    for attempt, process in ((1, 0), (1, 1), (2, 0)):
        lines = Lines(tmp_path, process, 2, attempt)
        lines.add({"step": attempt})
        lines.close()
    assert texts(tmp_path / "0-of-2.jsonl") == [{"attempt": 1, "step": 1}, {"attempt": 2, "step": 2}]
    assert texts(tmp_path / "1-of-2.jsonl") == [{"attempt": 1, "step": 1}]


def test_the_file_is_made_with_the_first_line_or_when_it_is_asked_for(tmp_path):
    lines = Lines(tmp_path / "folder", 0, 1, 1)
    assert not (tmp_path / "folder").exists()
    lines.open().close()
    assert (tmp_path / "folder" / "0-of-1.jsonl").read_text() == ""


@pytest.mark.parametrize("torn", ['{"attempt": 1, "st', '{"attempt": 1, "long": "' + "x" * 10_000])
def test_a_last_line_that_was_cut_takes_no_later_one_with_it(tmp_path, torn):
    path = tmp_path / "0-of-1.jsonl"
    path.write_text('{"attempt": 1, "step": 1}\n' + torn)
    lines = Lines(tmp_path, 0, 1, 2)
    lines.add({"step": 2})
    assert texts(path) == [{"attempt": 1, "step": 1}, {"attempt": 2, "step": 2}]
    lines.close()


def test_a_full_disk_is_told_with_the_code_that_starts_the_run_again(tmp_path):
    (tmp_path / "0-of-1.jsonl").symlink_to("/dev/full")
    lines = Lines(tmp_path, 0, 1, 1)
    with pytest.raises(RunError, match=r"0-of-1\.jsonl: cannot be written \(No space left.*Free space") as refused:
        lines.add({"step": 1})
    assert refused.value.exit_code == ExitStatus.RETRY
    lines.close()


def test_a_place_that_is_wrong_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written") as refused:
        Lines(tmp_path / "file" / "folder", 0, 1, 1).open()
    assert refused.value.exit_code == ExitStatus.USER_ERROR
