"""Predictions cover each example once, in order, on any mesh, with the text of the examples."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from engine import ArraySource, Balanced
from engine.api.predictions import Predictor, _from_json, _to_json
from engine.base.errors import DataError, ShardingError, TaskError
from engine.config.schema import Data, MeshSpec
from engine.data.text import is_text, text_columns
from engine.training.state import Weights
from tests import zoo
from tests.predicting import NAMES, SIZES, N, Predict, Unreadable, bucketed


@dataclasses.dataclass
class Single(zoo.Classify):
    """Predicts one array, or what a function of the logits returns."""

    result: Callable[[Any], Any] | None = None

    def predict(self, model, batch):
        logits = model(batch["x"])
        return logits if self.result is None else self.result(logits)


class Points(zoo.Classify):
    """Predicts the points of the batch."""

    def predict(self, model, batch):
        return {"points": batch["points"], "mask": batch["mask"]}


def columns(task, source, mesh=None, batch_size=16, precision="float32", fields=(), **settings):
    program = zoo.program(task, mesh=mesh, precision=precision)
    state = program.init()
    predictor = Predictor(source, Data(**settings), program.evaluation, batch_size, "data", fields)
    done = []
    parts = list(predictor.run(Weights(state.params, state.model_state), done.append))
    assert done[-1] == predictor.examples
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, program, state


def expected(program, state):
    module = program.spec.model.module(jax.device_get(state.params), jax.device_get(state.model_state), None)
    module.eval()
    return np.asarray(module(zoo.examples(N, seed=5)["x"]))


@pytest.mark.parametrize(
    ("mesh", "batch_size"), [(None, 16), (None, 64), (MeshSpec(data=2, fsdp=2, tensor=2), 8)], ids=str
)
def test_each_example_is_predicted_once_in_order_with_its_text(mesh, batch_size):
    found, program, state = columns(Predict("cnn"), Unreadable(), mesh, batch_size)
    logits = expected(program, state)
    assert found["example"].tolist() == list(range(N))
    np.testing.assert_allclose(found["scores/logits"], logits, atol=1e-5)
    assert found["label"].tolist() == logits.argmax(-1).tolist()
    assert found["id"].tolist() == NAMES
    assert found["raw"].tolist() == [b"\0%d" % i for i in range(N)]


def test_limit_and_array_sources_and_a_single_array_without_text():
    found, program, state = columns(Single(), ArraySource(zoo.examples(N, seed=5)), limit=20)
    assert found.keys() == {"example", "example/key", "prediction"}
    assert found["example/key"].tolist() == [str(i) for i in range(20)]
    np.testing.assert_allclose(found["prediction"], expected(program, state)[:20], atol=1e-5)


def test_bfloat16_predictions_are_float32():
    found, program, state = columns(Single(), Unreadable(), precision="bfloat16")
    assert found["prediction"].dtype == np.float32
    np.testing.assert_allclose(found["prediction"], expected(program, state), atol=0.1)


def test_unreadable_examples_stop_or_are_left_out(caplog):
    with pytest.raises(DataError, match="Example 7 of"):
        columns(Predict(), Unreadable({7, 36}))
    found, program, state = columns(Predict(), Unreadable({7, 36}), on_error="skip")
    kept = [i for i in range(N) if i not in (7, 36)]
    assert found["example"].tolist() == kept
    assert found["id"].tolist() == [NAMES[i] for i in kept]
    np.testing.assert_allclose(found["scores/logits"], expected(program, state)[kept], atol=1e-5)
    assert "skips an example: Example 7" in caplog.text


@pytest.mark.parametrize("bad", [set(), {7, 36}], ids=str)
def test_bucketed_examples_are_predicted_in_the_order_of_the_source(bad):
    found, program, state = columns(Predict(), Balanced(bucketed(bad), 2), batch_size=4, on_error="skip")
    kept = [i for i in range(N) if i not in bad]
    assert found["example"].tolist() == kept
    assert found["id"].tolist() == [NAMES[i] for i in kept]
    np.testing.assert_allclose(found["scores/logits"], expected(program, state)[kept], atol=1e-5)


def test_fields_of_the_examples_are_kept_as_they_are_read():
    mesh = MeshSpec(data=2, fsdp=2, tensor=2)
    found, _, _ = columns(Predict(), Unreadable(), mesh, fields=["y", "id"], precision="bfloat16")
    assert found["batch/y"].tolist() == zoo.examples(N, seed=5)["y"].tolist()
    assert found["id"].tolist() == NAMES and "batch/id" not in found
    with pytest.raises(TaskError, match=r"^fields: the examples have no numbers named 'yy'. Did you mean y\? Allowed:"):
        columns(Predict(), Unreadable(), fields=["yy"])


def test_predictions_of_several_lengths_are_padded_to_the_largest():
    found, _, _ = columns(Points(), bucketed(), batch_size=1)
    assert found["points"].shape == found["mask"].shape == (N, 8)
    assert found["batch/mask"].tolist() == found["mask"].tolist()
    assert found["mask"].sum(axis=1).tolist() == SIZES
    assert found["points"].sum(axis=1).tolist() == [i * size for i, size in enumerate(SIZES)]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (zoo.Classify(), r"^Classify has no predict\(self, model, batch\)\. Define it and return arrays"),
        (Single(result=lambda x: {"a": x.mean()}), r"^Single.predict: a is a single number \(float32\), allowed are"),
        (Single(result=lambda x: {"a": "text"}), r"^Single.predict: a is a str, allowed are arrays with one row"),
        (Single(result=lambda x: {}), r"^Single.predict returned a dict. Return arrays \[batch, ...\]"),
        (Single(result=lambda x: x[:4]), r"^Single.predict: prediction is an array float32\[4, 4\], allowed are"),
        (Single(result=lambda x: {}["score"]), r"^Single.predict: there is no 'score' .*The batch holds .*x float32"),
        (Predict(name="id"), r"^Predict.predict: the name 'id' is text of the dataset. Rename this prediction."),
        (Predict(name="example"), r"the name 'example' is the index of the example"),
        (Predict(name="example/key"), r"the name 'example/key' is a column of the engine"),
    ],
    ids=str,
)
def test_invalid_predictions_are_task_errors(task, text):
    with pytest.raises(TaskError, match=text):
        columns(task, Unreadable())


def test_batch_size_that_does_not_divide_is_a_sharding_error():
    with pytest.raises(ShardingError, match="the batch size of predictions = 6 is not divisible by 4 shards"):
        columns(Predict(), Unreadable(), MeshSpec(data=4, tensor=2), batch_size=6)


def test_text_survives_the_message_between_processes():
    for value in ("a", b"\0a\0", np.array(["a", "bb"]), np.array([b"a"]), np.zeros((0, 2), str)):
        found = _from_json(json.loads(json.dumps(_to_json(value))))
        assert is_text(found) and np.shape(found) == np.shape(value)
        np.testing.assert_array_equal(found, value)


def test_text_is_empty_where_the_examples_have_none():
    assert text_columns(zoo.examples(3)) == {}
