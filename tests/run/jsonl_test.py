"""JSON-lines files: appending, after a clean end and after a kill, and disk errors."""

import json

import pytest

from engine.base.errors import RunError
from engine.cluster.exit_status import ExitStatus
from engine.run.jsonl import JsonLinesWriter


def texts(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_process_appends_to_its_file_across_attempts(tmp_path):
    for attempt, process in ((1, 0), (1, 1), (2, 0)):
        lines = JsonLinesWriter(tmp_path, process, 2, attempt)
        lines.add({"step": attempt})
        lines.close()
    assert texts(tmp_path / "0-of-2.jsonl") == [{"attempt": 1, "step": 1}, {"attempt": 2, "step": 2}]
    assert texts(tmp_path / "1-of-2.jsonl") == [{"attempt": 1, "step": 1}]


def test_file_is_created_by_the_first_line_or_by_open(tmp_path):
    lines = JsonLinesWriter(tmp_path / "folder", 0, 1, 1)
    assert not (tmp_path / "folder").exists()
    lines.open().close()
    assert (tmp_path / "folder" / "0-of-1.jsonl").read_text() == ""


@pytest.mark.parametrize("incomplete", ['{"attempt": 1, "st', '{"attempt": 1, "long": "' + "x" * 10_000])
def test_incomplete_last_line_is_removed_before_appending(tmp_path, incomplete):
    path = tmp_path / "0-of-1.jsonl"
    path.write_text('{"attempt": 1, "step": 1}\n' + incomplete)
    lines = JsonLinesWriter(tmp_path, 0, 1, 2)
    lines.add({"step": 2})
    assert texts(path) == [{"attempt": 1, "step": 1}, {"attempt": 2, "step": 2}]
    lines.close()


def test_full_disk_error_has_the_retry_exit_code(tmp_path):
    (tmp_path / "0-of-1.jsonl").symlink_to("/dev/full")
    lines = JsonLinesWriter(tmp_path, 0, 1, 1)
    with pytest.raises(RunError, match=r"0-of-1\.jsonl: cannot be written \(No space left.*Free space") as refused:
        lines.add({"step": 1})
    assert refused.value.exit_code == ExitStatus.RETRY
    lines.close()


def test_invalid_path_error_has_the_user_error_exit_code(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written") as refused:
        JsonLinesWriter(tmp_path / "file" / "folder", 0, 1, 1).open()
    assert refused.value.exit_code == ExitStatus.USER_ERROR
