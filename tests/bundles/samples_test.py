"""Samples of bundles: rows of real data, and what the engine computes from them."""

import jax
import numpy as np
import pytest

import engine
from engine.base.errors import TaskError
from engine.bundles import samples
from engine.bundles.exported import Entry
from tests import zoo
from tests.bundles import subjects


@pytest.fixture(scope="module")
def reader():
    """Returns the loaded run of `Reader` and its samples."""
    run = subjects.reader_run()
    found = engine.load(run)
    return found, samples.sample_data(found, None)


def test_samples_are_the_first_rows_of_the_evaluation(reader):
    _, data = reader
    assert data.where == "evaluations.heldout.data"
    (batch,) = samples.entry_batches(Entry("predict"), data, False, 4)
    np.testing.assert_array_equal(batch["x"], zoo.examples(37, seed=9)["x"][:4])


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (np.zeros(3), "returns ndarray. Return a dict of at least one array"),
        ({}, "returns dict. Return a dict"),
        ({"x": np.zeros((2, 4)), "n": 3}, r"n is not an array .*: x float64\[2, 4\], n int64\[\]"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(3)}, "y is not an array of numbers with as many rows"),
        ({"x": np.zeros((0, 4))}, "x is not an array"),
        ({"x": np.array(["text"])}, "x is not an array of numbers"),
    ],
)
def test_wrong_example_inputs_are_named(reader, inputs, problem):
    _, data = reader
    with pytest.raises(TaskError, match=f"Reader.embed: inputs=: {problem}"):
        samples.entry_batches(Entry("embed", lambda task: inputs), data, False, None)


def test_example_inputs_have_the_dtypes_of_jax(reader):
    _, data = reader
    entry = Entry("embed", lambda task: {"x": np.zeros((2, 4)), "n": np.arange(2)})
    (batch,) = samples.entry_batches(entry, data, False, None)
    assert {name: str(x.dtype) for name, x in batch.items()} == {"x": "float32", "n": "int32"}
    assert samples.example_of(entry, data)["x"] == jax.ShapeDtypeStruct((4,), np.float32)


def test_rows_are_repeated_for_a_larger_batch(reader):
    _, data = reader
    (batch,) = samples.entry_batches(Entry("embed", lambda task: {"n": np.arange(2)}), data, False, 5)
    assert batch["n"].tolist() == [0, 1, 0, 1, 0]


def test_engine_computes_what_predict_does(reader):
    found, data = reader
    call = samples.engine_function(found, data, Entry("predict"), data.example)
    x = zoo.examples(37, seed=9)
    predicted = engine.predict(subjects.reader_run())
    np.testing.assert_allclose(call(x)["scores/all"], predicted["scores/all"], atol=1e-6)


def test_memory_starts_as_that_of_a_new_model():
    run = subjects.track_run()
    data = samples.sample_data(engine.load(run), None)
    assert samples.first_state(data, ()) == {}
    np.testing.assert_array_equal(samples.first_state(data, ("state/memory",))["state/memory"], np.zeros((1, 8)))
    frames = samples.entry_batches(Entry("predict"), data, True, 4)
    assert len(frames) == samples.FRAMES and frames[0]["sequence/starts"].all()
    assert not frames[1]["sequence/starts"].any()
