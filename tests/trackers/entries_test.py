"""Rows of `metrics.jsonl` become entries with the tags of TensorBoard."""

import math

import numpy as np

from engine.metrics.results import Bins, Curve, Image, Table
from engine.observe.drawing import png
from engine.trackers.entries import key_of, read_entries, rich_values
from tests.trackers.made import PIXELS, make_run, results_row, training_row


def read(directory, offset=0, rich=lambda key: None, count=100):
    return list(read_entries(directory.metrics, offset, directory.figures, rich, count))


def test_stored_rows_have_numbers_tables_histograms_and_figures(tmp_path):
    directory = make_run(tmp_path / "a", training_row(5, 0.5), results_row(5))
    [lines] = read(directory)
    first, second = lines.entries
    assert (first.step, first.time, dict(first.values)) == (5, 105.125, {"train/loss": 0.5})
    assert second.numbers == {"heldout/accuracy": 0.5}
    found = second.values
    assert isinstance(found["heldout/weights"], Bins) and found["heldout/weights"].counts.tolist() == [3, 4]
    assert isinstance(found["heldout/worst"], Table) and found["heldout/worst"].columns["name"] == ["a", "b"]
    assert isinstance(found["heldout/figures/0"], Image) and found["heldout/figures/0"].pixels == png(PIXELS)
    assert isinstance(norms := found["heldout/norms"], np.ndarray) and norms.tolist() == [1.0, 2.0]


def test_values_in_memory_replace_those_of_the_line(tmp_path):
    row = results_row(5)
    directory = make_run(tmp_path / "a", row)
    [lines] = read(directory, rich={key_of(row): rich_values(row)}.get)
    assert isinstance(lines.entries[0].values["heldout/roc"], Curve)


def test_numbers_that_are_not_finite_are_numbers(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, float("nan")), training_row(2, float("inf")))
    [lines] = read(directory)
    assert math.isnan(lines.entries[0].numbers["train/loss"])
    assert lines.entries[1].numbers == {"train/loss": math.inf}


def test_incomplete_line_waits_and_damaged_line_is_counted(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 1.0))
    with open(directory.metrics, "a") as file:
        file.write('{"no": "step"}\n[1]\nrubbish\n{"step": 2, "time": 3.0, "batch": 1, "loss"')
    [lines] = read(directory)
    assert (len(lines.entries), lines.damaged) == (1, 3)
    with open(directory.metrics, "a") as file:
        file.write(": 0.25}\n")
    [more] = read(directory, lines.end)
    assert dict(more.entries[0].values) == {"train/loss": 0.25}


def test_lines_come_in_parts(tmp_path):
    directory = make_run(tmp_path / "a", *(training_row(step, 1.0) for step in range(1, 6)))
    assert [len(lines.entries) for lines in read(directory, count=2)] == [2, 2, 1]
