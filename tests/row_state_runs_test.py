"""Runs of a model that carries state for each row of a batch over ordered batches."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.api import prepared
from engine.base.errors import ConfigError, TaskError
from tests import runs, zoo
from tests.row_state import ROWS, WIDTH


def config(**settings):
    given = {
        "task__target": "tests.row_state.Continue", "data__target": "tests.row_state.source", "data__shuffle": False,
        "evaluations__heldout": dict(data=dict(target="tests.row_state.source", seed=9, n=55), every="3 steps"),
        "train__total": "6 steps", "checkpoint__every": "3 steps", "optimizer__schedule": "constant",
    }  # fmt: skip
    return runs.config(**{**given, **settings})


def unrolled(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Returns the logits of consecutive parts, from the state of a new model on, with numpy alone."""
    carry, found = np.ones((ROWS, WIDTH), np.float32), []
    for begin in range(0, len(x), ROWS):
        part = x[begin : begin + ROWS]
        joined = np.concatenate([part, carry[: len(part)]], axis=1)
        carry = np.tanh(joined @ weights["body/kernel"] + weights["body/bias"])
        found.append(carry @ weights["head/kernel"] + weights["head/bias"])
    return np.concatenate(found)


@pytest.mark.slow
def test_state_of_rows_passes_through_steps_evaluations_and_predictions(tmp_path):
    """On eight devices, in two attempts: as one pass through the recordings, whose last part is incomplete."""
    whole, path, weights = tmp_path / "whole", tmp_path / "run", tmp_path / "weights.safetensors"
    engine.train(config(mesh__data=8), workdir=whole)
    shutil.copytree(whole, path)
    shutil.rmtree(path / "checkpoints/6")
    engine.train(config(mesh__data=8), workdir=path)
    assert [runs.rows(run)[6] for run in (whole, path)] == [runs.rows(whole)[6]] * 2
    engine.export(path, weights)
    found, heldout = load_file(weights), zoo.examples(55, 9)
    logits = unrolled(found, heldout["x"])
    np.testing.assert_allclose(engine.predict(path, evaluation="heldout")["y"], logits, rtol=1e-5, atol=1e-6)
    loss = np.mean((logits - np.eye(4)[heldout["y"]]) ** 2)
    assert runs.rows(path, "heldout/loss")[6] == pytest.approx(loss, rel=1e-6)
    assert engine.evaluate(path)["heldout/loss"] == runs.rows(path, "heldout/loss")[6]
    assert not np.allclose(found["carry"], 1.0) and np.all(found["bank"] == 1.0)
    log = (path / "log.txt").read_text()
    assert "data: the examples are read in order (data.shuffle=False)" in log and "warning" not in log


def test_state_of_rows_is_refused_or_warned_of_where_rows_do_not_continue(tmp_path):
    """Microbatches, other batch sizes, a last batch that is not padded, and figures."""
    text = (
        r"train.accumulate = 2: the forward pass carries carry \[16, 8\] from batch to batch, for each of the 16 rows, "
        "but a microbatch has 8. Use accumulate=1"
    )
    for flag in (False, True):
        with pytest.raises(ConfigError, match=text):
            engine.train(config(train__accumulate=2, train__approximate_accumulation=flag), workdir=tmp_path / "run")
    text = r"heldout.batch_size: a batch of 8 rows does not fit the model state bank \[16, 2\], carry \[16, 8\], which"
    with pytest.raises(TaskError, match=text):
        engine.train(config(evaluations__heldout__batch_size=8), workdir=tmp_path / "run")
    with pytest.raises(TaskError, match=r"a batch of 7 rows .* a number of examples that they divide"):
        engine.train(config(task__target="tests.row_state.Total"), workdir=tmp_path / "run")
    drawn = dict(task__target="tests.row_state.Drawn", evaluations__heldout__figures=16)
    with pytest.raises(TaskError, match=r"heldout.figures: Drawn.predict carries carry from batch to batch, so that"):
        engine.train(config(**drawn), workdir=tmp_path / "run")
    warnings = {
        "data.shuffle=True: the model carries carry for each of the 16 rows from batch to batch, but": {
            "shuffle": True
        },
        "its 63 examples are not a multiple of 16": {"shuffle": False, "n": 63},
    }
    for text, data in warnings.items():
        given = config(data=dict(target="tests.row_state.source", **data))
        [found] = prepared.program(given)[0].warnings
        assert text in found
    assert not prepared.program(config(task__target="tests.zoo.Classify", data__shuffle=True))[0].warnings
