"""The row compares the engine with hand-written decoders, which have to train the same model on the same batches.

`all_test.py` runs the real loops and compares their losses.
"""

import os
import sys

import numpy as np
import pytest

from benchmarks import decoder, decoder_inputs
from benchmarks.decoder import Results
from benchmarks.decoder_inputs import SMALL
from benchmarks.worker import Worker


def test_row_is_the_ratio_of_the_times():
    results = Results(
        {"engine": [1.0, 2.0, 3.0], "plain JAX": [2.0, 2.0, 2.0]},
        {"engine": [1.0, 0.5], "plain JAX": [1.0, 0.25]},
        {"engine": 300, "plain JAX": 200},
    )
    (row,) = decoder.rows(results, SMALL)
    assert row.values == (0.5, 1.0, 1.5)
    assert "engine 2.000 s, 64 tokens/s; plain JAX 2.000 s; peak memory 1.50" in row.note
    assert "differ by at most 2.5e-01" in row.note
    assert row.target == "at most 0.55: not met"


def test_loops_that_train_differently_are_an_error():
    script = "import benchmarks.worker as w; w.serve(lambda steps: [{loss}] * steps)"
    with (
        Worker([sys.executable, "-c", script.format(loss=1.0)]) as engine,
        Worker([sys.executable, "-c", script.format(loss=1.1)]) as plain,
        pytest.raises(RuntimeError, match=r"the losses of plain JAX and the engine differ by 1\.0e-01"),
    ):
        decoder.run_turns({"engine": engine, "plain JAX": plain}, 1, 2)


def test_interpreter_with_torch_gets_no_packages_of_this_one():
    assert decoder.python_path("PyTorch") == ""
    assert decoder.python_path("engine").split(os.pathsep) == sys.path


def test_worker_that_ends_is_an_error():
    with Worker([sys.executable, "-c", "raise SystemExit(3)"]) as worker, pytest.raises(RuntimeError, match="with 3"):
        worker.turn(1)


def test_inputs_are_read_as_they_were_written(tmp_path):
    decoder_inputs.write(tmp_path / "inputs.npz", SMALL, steps=2)
    sizes, arrays = decoder_inputs.read(str(tmp_path / "inputs.npz"))
    assert sizes == SMALL
    assert arrays["tokens"].shape == (2 * SMALL.batch, SMALL.time + 1)
    assert {name: arrays[name].shape for name in SMALL.shapes()} == SMALL.shapes()
    assert np.ptp(arrays["tokens"]) < SMALL.vocabulary
