"""A run on a reader is resumed exactly, with bad records, too."""

import pytest
from flax import nnx

import engine
from engine import Loss, Task
from engine.readers import TFRecord
from tests import runs
from tests.readers.wire_format import example, write_tf_record

EXAMPLES = 40


@pytest.fixture
def folder(tmp_path):
    """A TFRecord file with two bad records."""
    path = write_tf_record(tmp_path / "x.tfrecord", (example(x=[i / 8, 1.0], y=[i]) for i in range(EXAMPLES)))
    stored = bytearray(path.read_bytes())
    for index in (5, 23):
        stored[int(TFRecord(str(path))._offsets[index])] ^= 1
    path.write_bytes(stored)
    return tmp_path


class Fit(Task):
    """A linear model of the two numbers of a record."""

    def build(self, rngs):
        return nnx.Linear(2, 1, rngs=rngs)

    def loss(self, model, batch, rng):
        return Loss.of((model(batch["x"])[:, 0] - batch["y"]) ** 2)


class Fail:
    """A hook that ends a run by an error."""

    def run(self, trainer, state, step):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_run_that_skips_bad_records_resumes_exactly(folder):
    decoder = {"target": "engine.readers.TFExample", "features": {"x": ("float32", [2]), "y": "float32"}}
    data = {"target": "engine.readers.TFRecord", "pattern": str(folder / "x.tfrecord"), "decoder": decoder}
    config = runs.config(
        task={"target": "tests.readers.resume_test.Fit"},
        data={**data, "on_error": "skip"},
        evaluations={},
        train__total="12 steps",
        checkpoint__every="4 steps",
    )
    engine.train(config, workdir=folder / "whole")
    interrupted = {"fail": {"target": "tests.readers.resume_test.Fail", "every": "7 steps"}}
    with pytest.raises(KeyboardInterrupt):
        engine.train(config, hooks=interrupted, workdir=folder / "broken")
    engine.train(config, workdir=folder / "broken")
    whole = runs.rows(folder / "whole")
    assert runs.rows(folder / "broken") == whole and sorted(whole) == list(range(1, 13))
    assert sum(runs.rows(folder / "whole", "bad_examples").values()) > 0
