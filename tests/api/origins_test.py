"""Rows of predictions name their examples, and their file can be scored with numpy alone."""

import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine import ArraySource, Balanced, Mean, Mixture, Packed
from engine.api.origins import Origins, ragged_fields
from engine.api.prediction_files import open_prediction_file
from engine.api.predictions import Predictor
from engine.config.schema import Data
from engine.config.schema import Evaluation as Config
from engine.data.source import example_spec, limited
from engine.loop.evaluation import Evaluator
from engine.metrics.results import scalars
from engine.training.state import Weights
from tests import zoo
from tests.predicting import SIZES, N, Ragged, Unreadable, bucketed


class Scored(zoo.Classify):
    """Predicts the logits."""

    def predict(self, model, batch):
        return {"logits": model(batch["x"])}


class Moved(zoo.Classify):
    """Moves each point by a logit of its example; the error is the distance to where it was."""

    def predict(self, model, batch):
        logits = model(batch["x"])[..., 0]  # [batch], or [batch, segments] of packed rows
        if logits.ndim == 1:
            return {"moved": batch["points"] + logits[:, None]}
        return {"moved": batch["points"] + jnp.take_along_axis(logits, jnp.maximum(batch["segment_ids"] - 1, 0), 1)}

    def evaluate(self, model, batch):
        error = jnp.abs(self.predict(model, batch)["moved"] - batch["points"])
        return {"error": Mean.of(error, batch["mask"])}


def packed(**options):
    return Packed(Ragged(), 12, fields=["points"], **options)


def predicted(task, source, path, fields):
    """Writes predictions to a file; returns its arrays, and the metrics of the engine."""
    program = zoo.program(task)
    state = program.init()
    predictor = Predictor(source, Data(), program.evaluation, 8, "data", fields)
    with open_prediction_file(path, False) as file:
        for columns in predictor.run(Weights(state.params, state.model_state)):
            file.add(columns)
    results = Evaluator("e", Config(), source, program.evaluation, 8).run(state)
    assert results is not None
    with np.load(path, allow_pickle=False) as found:
        return dict(found), scalars(results)


def test_three_workloads_are_scored_from_their_files_with_numpy(tmp_path):
    # Classification: the labels and the weights are in the file.
    file, wanted = predicted(Scored(), Unreadable(), tmp_path / "classes.npz", ["y", "valid"])
    correct = file["logits"].argmax(-1) == file["batch/y"]
    assert np.average(correct, weights=file["batch/valid"]) == pytest.approx(wanted["e/accuracy"], rel=1e-6)
    assert file["example/key"].tolist() == [str(i) for i in file["example"]]

    # Ragged examples: the mask says which points are real.
    file, wanted = predicted(Moved(), bucketed(), tmp_path / "ragged.npz", ["points"])
    error = np.abs(file["moved"] - file["batch/points"])
    assert error[file["batch/mask"]].mean() == pytest.approx(wanted["e/error"], rel=1e-5)
    by_example = [row[mask].mean() for row, mask in zip(error, file["batch/mask"], strict=True)]
    assert file["batch/mask"].sum(1).tolist() == SIZES

    # Packed rows: the segments say which points belong to which example of the dataset.
    file, wanted = predicted(Moved(), packed(), tmp_path / "packed.npz", ["points"])
    error = np.abs(file["moved"] - file["batch/points"])
    ids, segments = file["batch/segment_ids"], file["segment/example"]
    assert error[file["batch/mask"]].mean() == pytest.approx(wanted["e/error"], rel=1e-5)
    assert ((segments >= 0) == file["batch/segment_mask"]).all()
    found = {
        int(example): error[row][ids[row] == segment + 1].mean()
        for row, segment in np.argwhere(segments >= 0)
        for example in [segments[row, segment]]
    }
    assert [found[i] for i in range(N)] == pytest.approx(by_example, rel=1e-5)
    keys = [json.loads(text) for text in file["segment/key"].tolist()]
    assert keys == [[str(example) for example in row if example >= 0] for row in segments]


def test_keys_name_the_part_of_a_mixture_whatever_its_limit():
    mixture = Mixture(
        {"a": ArraySource(zoo.examples(6)), "b": limited(ArraySource(zoo.examples(8)), 4)}, {"a": 1, "b": 1}
    )
    keys = [f"a/{i}" for i in range(6)] + [f"b/{i}" for i in range(4)]
    assert Origins(mixture).keys(range(10))["example/key"] == keys
    part = limited(mixture, 5)
    assert Origins(part).keys(range(5))["example/key"] == ["a/0", "a/1", "b/0", "b/1", "b/2"]


def test_segments_of_packed_rows_in_a_mixture_are_examples_of_their_part():
    rows = packed()
    mixture = Mixture({"a": rows, "b": limited(packed(), 2)}, {"a": 1, "b": 1})
    origins, index = Origins(mixture), np.array([0, len(rows) + 1])
    found, keys = origins.numbers(index), origins.keys(index.tolist())
    for number, (part, row) in enumerate((("a", 0), ("b", 1))):
        pieces = [piece.example for piece in rows.pieces(row)]
        assert [i for i in found["segment/example"][number].tolist() if i >= 0] == pieces
        assert keys["segment/key"][number].tolist() == [f"{part}/{i}" for i in pieces]
        assert keys["example/key"][number] == f"{part}/{row}"


def test_pieces_of_split_examples_say_where_they_start():
    rows = packed(split=True)
    found = Origins(rows).numbers(np.arange(len(rows)))
    for row in range(len(rows)):
        ids = rows[row]["segment_ids"]
        for segment, example in enumerate(found["segment/example"][row].tolist()):
            count, start = int((ids == segment + 1).sum()), int(found["segment/start"][row, segment])
            assert (count == 0 and start == -1) if example < 0 else 0 <= start < start + count <= SIZES[example]


def test_only_ragged_sources_have_masks():
    def fields(source: Any) -> tuple[str, ...]:
        spec = example_spec(source)
        assert isinstance(spec, Mapping)
        return ragged_fields(source, spec)

    assert fields(Unreadable()) == ()
    assert fields(bucketed()) == fields(Balanced(bucketed(), 1)) == ("mask",)
    assert fields(packed()) == ("mask", "segment_ids", "segment_mask")
    documents = [{"tokens": np.arange(1, size)} for size in (4, 7, 3)]
    assert fields(Packed(documents, 5)) == ("segment_ids",)
    assert Origins(Packed(documents, 5)).numbers(np.array([0]))["segment/example"].tolist()[0][0] == 0
