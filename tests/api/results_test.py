import json
import re

import numpy as np

from engine.api.results import Results, StepResults
from engine.metrics.results import Bins, Curve, File, Image, Table


def cells(html):
    return re.findall(r"<t[hd][^>]*>([^<]*)</t", html)


def test_notebook_shows_numbers_and_tables_and_names_other_results():
    results = Results(
        {
            "step": 40,
            "loss": 0.041234,
            "roc": Curve(np.arange(3), np.arange(3)),
            "bins": Bins(np.arange(3), np.arange(2)),
            "scene": Image(np.zeros((4, 4)), "night/7.png"),
            "matrix": np.zeros((2, 3)),
            "states": File("per_example/night/40.parquet", b""),
            "worst": Table({"example": [3, 5], "id": ["a<b", "c"]}, "largest loss first"),
        }
    )
    assert results == dict(results)
    shown = cells(results._repr_html_())
    assert shown[:6] == ["result", "value", "step", "40", "loss", "0.04123"]
    assert shown[6:16] == [
        "roc", "curve of 3 points", "bins", "histogram of 2 bins", "scene", "image: figures/night/7.png", "matrix",
        "array [2, 3]", "states", "file: per_example/night/40.parquet",
    ]  # fmt: skip
    assert shown[16:] == ["example", "id", "3", "a&lt;b", "5", "c"]
    assert "<caption>worst (largest loss first)</caption>" in results._repr_html_()
    assert json.dumps(Results({"loss": 1.0})) == '{"loss": 1.0}'


def test_results_of_steps_are_one_table_of_their_numbers():
    steps = StepResults([Results({"step": 1, "loss": 0.5}), Results({"step": 2, "extra": 1.0, "t": Table({})})])
    assert cells(steps._repr_html_()) == ["step", "loss", "extra", "1", "0.5", "-", "2", "-", "1"]


def test_many_results_are_cut():
    shown = cells(Results({f"m{i}": float(i) for i in range(150)})._repr_html_())
    assert shown[-2:] == ["...", "50 more"] and len(shown) == 2 * 102
