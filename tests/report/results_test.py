"""Results of evaluations in the form of the report: tables, curves, histograms, matrices, slices, worst examples."""

from engine.metrics import slices
from engine.report import results
from engine.report.rows import read_rows
from engine.report.settings import read_texts
from tests.report.made import full_run


def test_each_kind_of_result_is_recognised(tmp_path):
    rows = read_rows(full_run(tmp_path / "a") / "metrics.jsonl")
    found = {result["name"]: result for result in results.shown(rows)}
    assert {name: result["kind"] for name, result in found.items()} == {
        "heldout/roc": "curve",
        "heldout/errors": "histogram",
        "heldout/classes": "table",
        "heldout/confusion": "matrix",
    }
    assert found["heldout/roc"]["xName"] == "false positives"
    assert found["heldout/classes"]["rows"] == [("car", 0.5), ("bus", 0.25)]


def test_slices_stand_beside_all_examples(tmp_path):
    run = full_run(tmp_path / "a")
    [found] = results.slices(read_rows(run / "metrics.jsonl"), read_texts(run / "config.txt"))
    assert (found["evaluation"], found["metrics"], found["whole"]) == ("heldout", ["accuracy"], [0.8])
    assert found["rows"] == [["night", 12.0, 0.5], ["digit/1", 30.0, 0.9]]


def test_worst_examples_keep_their_text(tmp_path):
    found = results.worst_examples(read_rows(full_run(tmp_path / "a") / "metrics.jsonl"))
    assert found["heldout"]["columns"] == ["example", "loss", "id"]
    assert found["heldout"]["rows"][0] == (7, 4.5, "seven")


def test_large_table_is_cut_and_says_how_much_is_missing():
    found = results.table({"a": list(range(1000))})
    assert (len(found["rows"]), found["more"]) == (results.MOST_ROWS, 1000 - results.MOST_ROWS)


def test_count_of_a_slice_has_the_name_that_evaluations_write():
    assert slices.COUNT == results.COUNT
