"""The table of the optimizers: its committed rows, and a tiny run."""

import json

import pytest

from benchmarks.optimizer_matrix import __main__ as matrix
from benchmarks.optimizer_matrix.subjects import MESHES, OPTIMIZERS, SETTINGS
from benchmarks.references.optimizers import TOLERANCE, TOLERANCES


@pytest.fixture(scope="module")
def rows():
    return json.loads(matrix.ROWS.read_text())


def test_rows_have_each_optimizer_and_each_cell(rows):
    assert rows.keys() == {*OPTIMIZERS}
    for name, parts in rows.items():
        assert parts["updates"].keys() == parts["bytes"].keys() == {*MESHES}, name
        assert parts.get("settings", {}).keys() <= {*SETTINGS}, name


def test_committed_cells_agree(rows):
    for name, parts in rows.items():
        assert parts["reference"] <= TOLERANCES.get(name, TOLERANCE), name
        assert parts["resume"] == "equal", name


def test_table_is_printed_with_refusals_below_it(capsys):
    assert matrix.main(["--table"]) == 0
    printed = capsys.readouterr().out
    assert printed.split()[:2] == ["optimizer", "reference"]
    text = matrix.table({"one": {"settings": {"EMA": "train.ema_decay: refused."}, "bytes": {"fsdp": 2.0}}})
    assert "(1)" in text and "(1) one, EMA: train.ema_decay: refused." in text and "2.00" in text


def test_tiny_run_measures_an_optimizer(tmp_path, capsys):
    assert matrix.main(["--tiny", f"--rows={tmp_path / 'rows.json'}"]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())["lion"]
    assert max(found["updates"].values()) < 1e-5 and found["bytes"]["ZeRO-1"] < 0.2
    assert "lion" in capsys.readouterr().out


def test_unknown_optimizer_is_refused(capsys):
    assert matrix.main(["--only=adamax"]) == 2
    assert "adamax is unknown. Optimizers: adamw, nadamw, " in capsys.readouterr().err
