import numpy as np
import pytest

import engine
from engine.api.saved_predictor import Request, SavedPredictor
from tests import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("predictor") / "run"
    engine.train(runs.config(task__target="tests.predicting.Predict", train__total="2 steps"), workdir=path)
    return path


def test_some_batches_have_the_rows_of_all(run):
    messages, done = [], []
    opened = SavedPredictor(Request(run, batch_size=8), on_message=messages.append)
    assert (opened.step, opened.where, opened.batch_size, opened.predictor.batches) == (
        2,
        "evaluations.heldout.data",
        8,
        5,
    )
    assert messages == [f"predicting with {run} at step 2 (the newest)"]
    whole = list(opened.run(lambda examples: None))
    for numbers in (range(1, 3), range(4, 5), range(0)):
        found = list(opened.run(done.append, numbers))
        assert len(found) == len(numbers)
        for number, columns in zip(numbers, found, strict=True):
            assert columns.keys() == whole[number].keys()
            assert all(np.array_equal(columns[name], whole[number][name]) for name in columns)
    assert done == [16, 24, 37]


def test_request_holds_what_was_chosen(run):
    opened = SavedPredictor(Request(run, step="latest"), on_message=lambda text: None)
    assert (opened.request.step, opened.request.batch_size) == (2, 16)
