"""The notebook of the docs runs from its first to its last cell; Jupyter is not needed."""

import ast
import json
from typing import Any

import numpy as np
import pytest

from tests.docs import pages

NOTEBOOK = pages.ROOT / "docs" / "notebook.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_notebook_trains_plots_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    last: Any = None
    for number, cell in enumerate(code_cells()):
        tree = ast.parse("".join(cell["source"]))
        if isinstance(end := tree.body[-1], ast.Expr):
            tree.body.pop()
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(end, ast.Expr):  # as Jupyter shows it
            last = eval(compile(ast.Expression(end.value), f"cell {number}", "eval"), names)
    summary, curve, found, test = (names[name] for name in ("summary", "curve", "found", "test"))
    assert summary.state == "done" and summary.metrics["heldout/accuracy"] > 0.8
    assert len(curve.accuracy) == 8
    assert found["id"].tolist() == test.arrays["id"].tolist()
    assert np.mean(found["digit"] == test.arrays["label"]) == pytest.approx(max(curve.accuracy.items())[1])
    assert np.shape(last) == (1, 10)
    assert "step " in capsys.readouterr().err


def test_notebook_is_stored_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
