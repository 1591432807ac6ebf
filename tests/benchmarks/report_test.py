"""Rows of measured values: their text, their targets, and the file that other programs read."""

import argparse

import pytest

from benchmarks import report
from benchmarks.report import Row


def test_result_is_the_median_with_the_range():
    assert Row("wait", (3.0, 1.0, 2.0), "ms", digits=1, note="alone").result == "2.0 (1.0-3.0) ms; alone"
    assert report.ratios([2, 9], [1, 3]) == (2, 3)


@pytest.mark.parametrize(
    ("row", "target"),
    [
        (Row("a", (1.0, 2.0, 9.0), at_most=2), "at most 2: met"),
        (Row("a", (1.0, 2.1, 9.0), "s", at_most=2), "at most 2 s: not met"),
        (Row("a", (1.0, 2.0, 9.0), at_least=2), "at least 2: met"),
        (Row("a", (1.0, 1.9, 9.0), at_least=2), "at least 2: not met"),
        (Row("a", (1.0,)), ""),
    ],
)
def test_target_is_compared_with_the_median(row, target):
    assert row.target == target


def measured(args: argparse.Namespace):
    yield Row("first", (1.0, 2.0), note="a | b")
    if args.fail:
        raise ValueError("the disk is full")
    yield Row("second", (3.0,), "s", at_most=4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fail", action="store_true")


def test_rows_are_printed_and_read_back(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    report.main("doc", add_arguments, measured, [f"--rows={file}"])
    rows = [Row("first", (1.0, 2.0), note="a | b"), Row("second", (3.0,), "s", at_most=4)]
    assert report.read_rows(file) == (rows, "")
    machine, *lines = capsys.readouterr().out.splitlines()
    assert " cores, " in machine and "; jax " in machine and "; load " in machine
    assert lines == [str(row) for row in rows]


def test_error_follows_the_rows_that_were_measured_before(tmp_path):
    file = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="full"):
        report.main("doc", add_arguments, measured, ["--fail", f"--rows={file}"])
    assert report.read_rows(file) == ([Row("first", (1.0, 2.0), note="a | b")], "ValueError: the disk is full")


def test_row_that_is_cut_ends_the_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"row": {"what": "step", "values": [1.0]}}\n{"row": {"wh')
    assert report.read_rows(file) == ([Row("step", (1.0,))], "killed while it wrote a row")


def test_tiny_stands_for_arguments_that_others_override(capsys):
    def add_arguments(parser):
        parser.add_argument("--turns", type=int, default=9)
        parser.add_argument("--steps", type=int, default=9)

    def run(args):
        yield Row("turns", (args.turns,))
        yield Row("steps", (args.steps,))

    report.main("", add_arguments, run, ["--tiny", "--steps=3"], tiny=("--turns=1", "--steps=2"))
    assert "turns: 1.00" in (printed := capsys.readouterr().out) and "steps: 3.00" in printed


def test_benchmark_without_a_file_has_no_rows(tmp_path):
    assert report.read_rows(tmp_path / "nothing") == ([], "")


def test_progress_is_a_line_every_ten_seconds_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(report, "_progress_at", 0.0)
    report.progress("turn 1")
    report.progress("turn 2")
    assert capsys.readouterr().err == "turn 1\n"
