"""A position is kept for each destination; a damaged file is an error, since what was sent is not known."""

from concurrent.futures import ThreadPoolExecutor

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


def test_destinations_of_one_kind_are_stored_by_their_threads_at_the_same_time(tmp_path):
    files = [PositionFile(RunDirectory(tmp_path), "mlflow", place) for place in "abcd"]
    with ThreadPoolExecutor(len(files)) as threads:
        for _ in range(25):
            list(threads.map(lambda file: file.write(Position({"run": "1"}, file.read().offset + 1)), files))
    assert [file.read().offset for file in files] == [25] * len(files)


def test_damaged_file_is_an_error_that_says_what_to_do(tmp_path):
    file = PositionFile(RunDirectory(tmp_path), "mlflow", "a")
    file.path.parent.mkdir()
    file.path.write_text('{"a": {}}')
    with pytest.raises(RunError, match=r"mlflow.json: cannot be read .* Remove it to send the whole run"):
        file.read()
