"""CSV files have a column for each metric and the latest value of each step."""

import csv

from engine.trackers.csv_tracker import Csv
from engine.trackers.sender import Sender
from tests.trackers.made import make_run, results_row, training_row, write_rows


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def send(directory, *arguments):
    sender = Sender(Csv(*arguments), directory)
    sender.send()
    sender.finish("done", "")


def test_each_group_is_a_file_and_each_table_another(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 0.5), results_row(1), training_row(2, 0.25))
    send(directory)
    folder = tmp_path / "a" / "csv"
    assert [(row["step"], row["loss"]) for row in read(folder / "train.csv")] == [("1", "0.5"), ("2", "0.25")]
    assert read(folder / "heldout.csv") == [{"step": "1", "time": "101.625", "accuracy": "0.5"}]
    assert read(folder / "tables/heldout/worst/1.csv")[1] == {"example": "8", "name": "b"}
    assert {"name": "train.seed", "value": "0"} in read(folder / "settings.csv")
    assert read(folder / "end.csv")[0] == {"name": "state", "value": "done"}


def test_repeated_steps_replace_earlier_rows_and_a_new_metric_is_a_new_column(tmp_path):
    directory = make_run(tmp_path / "a", *(training_row(step, 1.0) for step in range(1, 5)))
    send(directory)
    write_rows(directory, training_row(3, 0.5, attempt=2) | {"accuracy": 0.9}, training_row(4, 0.25, attempt=2))
    send(directory)
    rows = read(tmp_path / "a/csv/train.csv")
    assert [(row["step"], row["loss"], row["accuracy"]) for row in rows] == [
        ("1", "1.0", ""), ("2", "1.0", ""), ("3", "0.5", "0.9"), ("4", "0.25", ""),
    ]  # fmt: skip


def test_row_that_was_cut_is_written_again(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 0.5), training_row(2, 0.5))
    send(directory)
    with open(tmp_path / "a/csv/train.csv", "a") as file:
        file.write("3")
    write_rows(directory, training_row(3, 0.25), training_row(4, 0.25))
    send(directory)
    rows = read(tmp_path / "a/csv/train.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [("1", "0.5"), ("2", "0.5"), ("3", "0.25"), ("4", "0.25")]


def test_rollback_within_one_call_drops_the_later_steps(tmp_path):
    steps = [(1, 1), (2, 1), (3, 1), (2, 2)]
    directory = make_run(tmp_path / "a", *(training_row(step, 1.0, attempt) for step, attempt in steps))
    send(directory)
    assert [row["step"] for row in read(tmp_path / "a/csv/train.csv")] == ["1", "2"]


def test_runs_of_one_name_have_folders_of_their_own(tmp_path):
    for parent in ("x", "y"):
        send(make_run(tmp_path / parent / "a", training_row(1, 0.5)), str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "a-2"]
