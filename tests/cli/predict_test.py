"""`convoy predict` writes a file; tests of the function are in tests/api."""

import numpy as np
import pytest

import engine
from engine.cli.main import main
from tests import runs


def test_predict_writes_a_file_and_replaces_it_only_on_request(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "predictions.npz"
    engine.train(runs.config(task={"target": "tests.predicting.Predict"}, train__total="2 steps"), workdir=run)
    capsys.readouterr()
    words = ["predict", str(run), f"--out={out}", "--evaluation=heldout"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"wrote predictions of 37 examples to {out}\n"
    assert len(np.load(out)["label"]) == 37
    assert main(words) == 1
    assert main([*words, "--overwrite", "--fields=y,valid"]) == 0
    assert {"example", "example/key", "batch/y", "batch/valid", "label"} <= set(np.load(out))
    capsys.readouterr()
    assert main([*words, "--overwrite", "--fields=z"]) == 1
    assert "fields: the examples have no numbers named 'z'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--out=p.npz", "--batch-size=0"], "--batch-size = 0: allowed is a whole number from 1."),
        (["run", "--out=p.npz", "--figures=-1"], "--figures = -1: allowed is a whole number from 0."),
        (["run"], "the following arguments are required: --out"),
        (["run", "--out=p.npz", "--data.limit"], "--data.limit: no value. Write --data.limit=VALUE."),
    ],
)
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(["predict", *words]) == 1
    assert text in capsys.readouterr().err
