"""The ledger of examples: reading the lines of several processes and attempts."""

import pytest

from engine.base.errors import RunError
from engine.run import ledger
from engine.run.ledger import Ledger


def write(folder, process, processes, attempt, *batches):
    ledger_writer = Ledger(folder, process, processes, attempt)
    for batch, rows, examples in batches:
        ledger_writer.write(batch, rows, examples)
    ledger_writer.close()


def test_read_merges_rows_of_all_processes_in_batch_order(tmp_path):
    write(tmp_path, 1, 2, 1, (0, [2, 3], [30, 40]), (1, [2, 3], [31, 41]))
    write(tmp_path, 0, 2, 1, (0, [0, 1], [10, 20]), (1, [0, 1], [11, 21]))
    assert ledger.read(tmp_path) == {1: [10, 20, 30, 40], 2: [11, 21, 31, 41]}


def test_rows_fed_identically_by_two_processes_count_once(tmp_path):
    write(tmp_path, 0, 2, 1, (0, [0, 1], [10, 20]))
    write(tmp_path, 1, 2, 1, (0, [0, 1], [10, 20]))
    assert ledger.read(tmp_path) == {1: [10, 20]}


def test_last_attempt_of_a_step_counts_for_any_process_count(tmp_path):
    write(tmp_path, 0, 1, 2, (1, [0, 1], [5, 6]))
    write(tmp_path, 0, 2, 1, (0, [0], [1]), (1, [0], [2]))
    write(tmp_path, 1, 2, 1, (0, [1], [3]), (1, [1], [4]))
    assert ledger.read(tmp_path) == {1: [1, 3], 2: [5, 6]}


def test_incomplete_line_is_skipped_and_appending_continues(tmp_path):
    write(tmp_path, 0, 1, 1, (0, [0], [1]))
    with open(tmp_path / "0-of-1.jsonl", "a") as file:
        file.write('{"attempt": 1, "st\n')
    write(tmp_path, 0, 1, 2, (1, [0], [2]))
    assert ledger.read(tmp_path) == {1: [1], 2: [2]}


def test_line_is_readable_before_close(tmp_path):
    ledger_writer = Ledger(tmp_path, 0, 1, 1)
    ledger_writer.write(0, [0], [7])
    assert ledger.read(tmp_path) == {1: [7]}
    ledger_writer.close()


def test_unwritable_folder_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        Ledger(tmp_path / "file" / "examples", 0, 1, 1)


def test_shares_of_tags_count_each_row_of_the_last_attempt_once(tmp_path):
    for process, attempt, batches in [
        (0, 1, [(0, [0, 1], {"night": 2}), (1, [0, 1], {"day": 2})]),
        (1, 1, [(0, [2, 3], {"day": 1, "night": 1}), (1, [2, 3], {})]),
        (0, 2, [(1, [0, 1], {"day": 1, "night": 1})]),
        (1, 2, [(1, [2, 3], {"night": 2})]),
    ]:
        ledger_writer = Ledger(tmp_path, process, 2, attempt)
        for batch, rows, tags in batches:
            ledger_writer.write(batch, rows, rows, tags)
        ledger_writer.close()
    assert ledger.shares(tmp_path, 1, 1) == {"day": 0.25, "night": 0.75}
    assert ledger.shares(tmp_path, 1, 2) == {"day": 0.25, "night": 0.75}
    assert ledger.shares(tmp_path, 2, 9) == {"day": 0.25, "night": 0.75}
    assert ledger.shares(tmp_path, 3, 9) == {}
    assert ledger.read(tmp_path) == {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}
