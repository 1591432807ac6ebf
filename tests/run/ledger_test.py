"""The ledger of examples: lines of several processes and attempts, read together."""

import pytest

from engine.config.errors import RunError
from engine.run import ledger
from engine.run.ledger import Ledger


def write(folder, process, processes, attempt, *batches):
    book = Ledger(folder, process, processes, attempt)
    for batch, rows, examples in batches:
        book.write(batch, rows, examples)
    book.close()


def test_the_rows_of_all_processes_are_put_together_in_the_order_of_the_batch(tmp_path):
    write(tmp_path, 1, 2, 1, (0, [2, 3], [30, 40]), (1, [2, 3], [31, 41]))
    write(tmp_path, 0, 2, 1, (0, [0, 1], [10, 20]), (1, [0, 1], [11, 21]))
    assert ledger.read(tmp_path) == {1: [10, 20, 30, 40], 2: [11, 21, 31, 41]}


def test_rows_that_two_processes_feed_alike_count_once(tmp_path):
    write(tmp_path, 0, 2, 1, (0, [0, 1], [10, 20]))
    write(tmp_path, 1, 2, 1, (0, [0, 1], [10, 20]))
    assert ledger.read(tmp_path) == {1: [10, 20]}


def test_the_last_attempt_of_a_step_counts_whatever_its_processes(tmp_path):
    write(tmp_path, 0, 1, 2, (1, [0, 1], [5, 6]))
    write(tmp_path, 0, 2, 1, (0, [0], [1]), (1, [0], [2]))
    write(tmp_path, 1, 2, 1, (0, [1], [3]), (1, [1], [4]))
    assert ledger.read(tmp_path) == {1: [1, 3], 2: [5, 6]}


def test_half_a_line_is_passed_over_and_the_file_is_added_to(tmp_path):
    write(tmp_path, 0, 1, 1, (0, [0], [1]))
    with open(tmp_path / "0-of-1.jsonl", "a") as file:
        file.write('{"attempt": 1, "st\n')
    write(tmp_path, 0, 1, 2, (1, [0], [2]))
    assert ledger.read(tmp_path) == {1: [1], 2: [2]}


def test_a_line_is_with_the_system_at_once(tmp_path):
    book = Ledger(tmp_path, 0, 1, 1)
    book.write(0, [0], [7])
    assert ledger.read(tmp_path) == {1: [7]}
    book.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        Ledger(tmp_path / "file" / "examples", 0, 1, 1)
