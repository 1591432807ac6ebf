"""A position is kept for each destination; a damaged file is an error, since what was sent is not known."""

import pytest

from engine.base.errors import RunError
from engine.run.directory import RunDirectory
from engine.trackers.position import Position, PositionFile


def test_each_destination_has_its_position(tmp_path):
    first, second = (PositionFile(RunDirectory(tmp_path), "mlflow", place) for place in ("a", "b"))
    assert first.read() == Position()
    first.write(Position({"run": "1"}, 10, {"train/loss": 5}, "done"))
    second.write(Position({"run": "2"}, 20))
    assert first.read() == Position({"run": "1"}, 10, {"train/loss": 5}, "done")
    assert second.read().offset == 20


def test_damaged_file_is_an_error_that_says_what_to_do(tmp_path):
    file = PositionFile(RunDirectory(tmp_path), "mlflow", "a")
    file.path.parent.mkdir()
    file.path.write_text('{"a": {}}')
    with pytest.raises(RunError, match=r"mlflow.json: cannot be read .* Remove it to send the whole run"):
        file.read()
