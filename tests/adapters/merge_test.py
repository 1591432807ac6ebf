"""Merged adapters: the outputs, the classes and the paths."""

import jax
import numpy as np
from flax import nnx

from engine.adapters import merged
from engine.training.model import describe
from tests.adapters import subjects


def test_merged_model_has_the_outputs_and_the_structure_of_the_plain_one():
    model, before = subjects.module(), subjects.module(subjects.program().init())
    found = merged(model)
    assert nnx.split(found)[0] == describe(subjects.Small()).graph
    outputs = subjects.outputs(model)
    assert np.abs(subjects.outputs(before) - outputs).max() > 1e-2
    np.testing.assert_allclose(subjects.outputs(found), outputs, atol=1e-6)


def test_model_keeps_its_adapters():
    model = subjects.module()
    graph, before = nnx.split(model)[0], jax.device_get(nnx.to_flat_state(nnx.state(model)))
    merged(model)
    assert nnx.split(model)[0] == graph
    for (path, x), (_, y) in zip(before, nnx.to_flat_state(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(x.get_value(), y.get_value(), str(path))


def test_model_without_adapters_is_copied():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert nnx.split(merged(model))[0] == nnx.split(model)[0]
