"""Samples of bundles: rows of real data, and what the engine computes from them."""

import numpy as np
import pytest

import engine
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
