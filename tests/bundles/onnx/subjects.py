"""Untrained models as loaded runs, and methods to convert."""

import numpy as np
from flax import nnx

from engine.api.saved_run import LoadedRun
from engine.bundles.forward import forward_of
from engine.bundles.onnx.request import Method
from engine.bundles.program import input_specs
from engine.data.source import ArraySource, example_spec
from tests import runs
from tests.bundles.onnx.tasks import Several

ROWS = 4  # of the memory of `Several`


def loaded(seed=0, config=None):
    """Returns an untrained `Several` as if it were loaded from a run."""
    config = config or runs.config(task=dict(target="tests.bundles.onnx.tasks.Several"), train__global_batch_size=ROWS)
    model = Several(ROWS).build(nnx.Rngs(seed))
    model.eval()
    return LoadedRun(Several(ROWS), model, config, 0)


def method(name, inputs, shapes=None, cases=None, found=None):
    """Returns a method of `Several` to convert, and its function with the weights.

    Args:
        name: name of the method.
        inputs: example inputs, name -> array `[rows, ...]`.
        shapes: dimensions of the inputs, as in `engine.exported`.
        cases: inputs to run; by default two rows of the example inputs, and one.
        found: the loaded run.
    """
    found = found or loaded()
    example = example_spec(ArraySource(inputs))
    forward = forward_of(found.task, found.model, np.float32, example, name, ROWS)
    if cases is None:
        cases = [([{key: x[:rows] for key, x in inputs.items()}], {}) for rows in (2, 1)]
    return Method(name, example, input_specs(forward, None, shapes or {}), ROWS, cases), forward


def points(rows, count=60):
    """Returns points `[rows, count, 3]`, of which some are outside of the grid, and whether they are valid."""
    rng = np.random.default_rng(3)
    where = rng.normal(0, 3, (rows, count, 3)).astype(np.float32)
    return {"points": where * np.array([1, 1, 0.3], np.float32), "valid": rng.random((rows, count)) < 0.9}


def sequences(rows, time):
    """Returns sequences `[rows, time, 8]` of three documents each."""
    rng = np.random.default_rng(4)
    segments = np.sort(rng.integers(1, 4, (rows, time)).astype(np.int32), 1)
    return {"x": rng.normal(size=(rows, time, 8)).astype(np.float32), "segments": segments}


def vectors(rows, seed=5):
    """Returns `[rows, 8]`."""
    return {"x": np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)}
