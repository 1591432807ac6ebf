"""Results of evaluations and hooks: where they go, and the warning about results that are too large for a file."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.loop.events.results import Results
from engine.metrics.results import MAX_NUMBERS, Table


def run(report):
    report()


def test_results_are_noted_stored_and_said_once():
    noted, stored, said = [], [], []
    recorder: Any = SimpleNamespace(note=lambda step, results: noted.append((step, [*results])), call=run)
    checkpoints: Any = SimpleNamespace(record=lambda step, values: stored.append((step, values)))
    latest = {"old": 1.0}
    results = Results(checkpoints, recorder, said.append, latest)
    for step in (4, 8):
        results.add(step, {"a/loss": 0.5, "a/matrix": np.zeros(MAX_NUMBERS + 1)})
    assert noted == [(4, ["a/loss", "a/matrix"]), (8, ["a/loss", "a/matrix"])]
    assert stored == [(4, {"a/loss": 0.5}), (8, {"a/loss": 0.5})]
    assert results.latest == {"old": 1.0, "a/loss": 0.5}
    assert [text for text in said if "warning" in text] == [
        f"warning: a/matrix: above {MAX_NUMBERS} numbers or rows, so not in metrics.jsonl"
    ]


def test_many_results_and_tables_are_printed_in_full_at_the_end_or_if_verbose():
    recorder: Any = SimpleNamespace(note=lambda step, results: None, call=run)
    checkpoints: Any = SimpleNamespace(record=lambda step, values: None)
    table = Table({"example": [3]}, "smallest accuracy first")
    values = {**{f"a/part/x{i}": float(i) for i in range(7)}, "a/loss": 0.5, "a/worst_examples": table}
    for verbose, last, lines in ((False, False, 1), (False, True, 4), (True, False, 6)):
        said = []
        Results(checkpoints, recorder, said.append, {}, watched={"a/part/x6"}, verbose=verbose).add(4, values, last)
        assert len("\n".join(said).splitlines()) == lines
    assert said[0].count("a/part") == 7
    assert said[1] == "step 4: a/worst_examples (smallest accuracy first):\n  example\n        3"
