"""What the rows of a run become: curves without repeated steps, marks, and results that are no numbers."""

import pytest

from engine.base.errors import RunError
from engine.report.rows import Mark, read_rows
from tests.report.made import training, write_rows


def test_rollback_replaces_the_steps_that_are_repeated(tmp_path):
    losses = [(1, 5.0), (2, 4.0), (3, 90.0), (4, 99.0), (3, 3.0), (5, 2.0)]
    write_rows(tmp_path, [training(step, loss) for step, loss in losses])
    found = read_rows(tmp_path / "metrics.jsonl")
    assert dict(zip(found.curves["training/loss"].steps, found.curves["training/loss"].values, strict=True)) == {
        1: 5.0, 2: 4.0, 3: 3.0, 5: 2.0,
    }  # fmt: skip
    assert found.marks == [Mark("rollback", 3, "rollback from step 4")]


def test_new_attempt_is_marked_and_drops_what_it_repeats(tmp_path):
    rows = [{"step": 0, "attempt": 1, "time": 1000.0, "compile_s": 1.0}, training(1, 5.0), training(4, 4.0)]
    rows += [{"step": 4, "heldout/loss": 1.0}, {"step": 2, "attempt": 2, "time": 1100.0, "compile_s": 1.0}]
    write_rows(tmp_path, rows)
    found = read_rows(tmp_path / "metrics.jsonl")
    text = "attempt 2 starts after step 2 (before, the run had reached step 4)"
    assert found.marks == [Mark("attempt", 2, text)]
    assert found.curves["training/loss"].steps.tolist() == [1]
    assert found.curves["heldout/loss"].steps.tolist() == []
    assert found.clock.steps.tolist() == [0, 1, 2]
    assert found.clock.values[-1] == 100.0


def test_values_that_are_not_finite_are_counted_and_not_drawn(tmp_path):
    write_rows(
        tmp_path, [training(1, 1.0), {**training(2, 0.0), "loss": "NaN"}, {**training(3, 0.0), "loss": "Infinity"}]
    )
    curve = read_rows(tmp_path / "metrics.jsonl").curves["training/loss"]
    assert (curve.steps.tolist(), curve.missing, curve.first_missing) == ([1], 2, 2)


def test_latest_result_that_is_no_number_is_kept(tmp_path):
    write_rows(
        tmp_path, [{"step": 1, "heldout/roc": [1]}, {"step": 2, "heldout/roc": [2]}, {"step": 2, "heldout/is": True}]
    )
    assert read_rows(tmp_path / "metrics.jsonl").results == {"heldout/roc": (2, [2])}


def test_evaluation_named_training_has_curves_of_its_own(tmp_path):
    write_rows(tmp_path, [training(2, 1.0), {"step": 2, "training/loss": 4.0}])
    assert {"training/loss", "evaluation training/loss"} <= set(read_rows(tmp_path / "metrics.jsonl").curves)


def test_missing_file_is_empty_and_damaged_lines_are_named(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl").curves == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "batch": 0, "loss": 1.0}\n{"step": 2, "lo')
    found = read_rows(tmp_path / "metrics.jsonl")
    assert found.curves["training/loss"].steps.tolist() == [1]
    assert "skipped 1 damaged line" in found.note


def test_file_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read"):
        read_rows(tmp_path / "metrics.jsonl")
