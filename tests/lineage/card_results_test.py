"""Results of a checkpoint: of its own step, from evaluations in the training and after it."""

import dataclasses
import math

import numpy as np
import pytest

from engine.api.saved_evaluations import StoredResults
from engine.base.json_text import dumps
from engine.data import dataset_summary
from engine.lineage.card_results import read_results_of
from engine.lineage.scores import WHOLE
from engine.lineage.things import thing_at
from engine.metrics.slices import Examples
from tests.experiments.made import errors, mean_of, write_examples
from tests.lineage.made import run


def numbers(folder, step):
    thing = thing_at(folder)
    assert thing is not None
    found = read_results_of(thing, step, "", lambda done, total: None)
    return {(one.evaluation, one.part, one.metric): one.value for one in found.scores}, found.notes


def test_results_are_those_of_the_step(tmp_path):
    base = run(tmp_path / "base", results={3: {"heldout/loss": 9.0}, 5: {"heldout/loss": 1.0, "heldout/f1/car": 0.5}})
    lines = [
        StoredResults(5, "late", {"late/accuracy": 0.5, "late/table": {}, "late/loss": math.nan}, {}),
        StoredResults(5, "heldout", {"heldout/loss": 7.0}, {"evaluations.heldout.limit": "3"}),
        StoredResults(3, "heldout", {"heldout/loss": 8.0}, {}),
    ]
    (base / "evaluations.jsonl").write_text("".join(dumps(dataclasses.asdict(line)) + "\n" for line in lines))
    found, notes = numbers(base, 5)
    assert math.isnan(found.pop(("late", WHOLE, "loss")))
    assert found == {
        ("heldout", WHOLE, "loss"): 1.0,
        ("heldout", WHOLE, "f1/car"): 0.5,
        ("late", WHOLE, "accuracy"): 0.5,
    }
    assert notes["late"] == "Step 5. No intervals: the metrics of its examples were not kept."
    assert numbers(base, 4) == ({}, {"heldout": "No result of step 4 is stored."})


def test_metrics_of_examples_of_other_data_are_not_those_of_the_evaluation(tmp_path):
    """`convoy evaluate` may have read other data than the run, under the same name."""
    base = run(tmp_path / "base", results={5: {"heldout/error": 0.25}})
    summary = {"examples": "200", "each": "", "content": "heldout"}
    (base / "data.json").write_text(dataset_summary.to_text({"evaluations.heldout.data": summary}))
    kept = Examples(np.arange(200), {}, {"error": mean_of(errors(0.0))}, content="heldout")
    for content, expected in (("heldout", errors(0.0).mean()), ("train", 0.25)):
        write_examples(base, dataclasses.replace(kept, content=content), step=5)
        found, notes = numbers(base, 5)
        assert found == {("heldout", WHOLE, "error"): pytest.approx(expected, rel=1e-5)}
    assert notes["heldout"].startswith(
        "Step 5. No intervals: the metrics of examples that are stored are of other data"
    )
