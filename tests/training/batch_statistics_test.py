"""Batch statistics that do not move, and the warning about those of frozen layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import ConfigError
from engine.compile.program import Program
from engine.training.batch_statistics import frozen_norms, moving_warnings
from engine.training.model import describe
from tests import zoo

STATISTICS = ("norm/mean", "norm/var")


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    """Programs of a CNN of which only the head is trained: with moving and with frozen statistics."""
    moving = zoo.program(zoo.Classify("cnn", 4), trainable="^head/")
    model = dataclasses.replace(moving.spec.model, frozen_norms=frozen_norms(moving.spec.model, "^norm/"))
    spec = dataclasses.replace(moving.spec, model=model, changed_state=frozenset())
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    return {"moving": moving, "frozen": Program(spec, example, batch_size=16, seed=0)}


def test_frozen_statistics_neither_move_nor_follow_the_batch(programs):
    found = {name: zoo.run(program, zoo.batches(2)) for name, program in programs.items()}
    first = programs["moving"].init().model_state
    for path in STATISTICS:
        np.testing.assert_array_equal(found["frozen"][0].model_state[path], first[path])
        assert np.abs(found["moving"][0].model_state[path] - first[path]).max() > 0
    module = programs["frozen"].spec.model.module(programs["frozen"].init().params, first, None)
    module.eval()
    batch = zoo.batches(1)[0]
    loss = zoo.Classify("cnn", 4).loss(module, batch, None)
    expected = jnp.sum(loss.total) / jnp.sum(loss.weight)
    np.testing.assert_allclose(zoo.losses(found["frozen"][1])[0], expected, rtol=1e-6)
    assert abs(zoo.losses(found["moving"][1])[0] - expected) > 1e-3


def test_moving_statistics_of_frozen_layers_are_reported(programs):
    assert moving_warnings(programs["moving"].spec) == (
        "the parameters of norm are frozen, but the batch statistics move with the data, so that these layers change. "
        'To normalise by the statistics of the checkpoint, set optimizer.frozen_statistics="^(norm)/".',
    )
    assert moving_warnings(programs["frozen"].spec) == ()
    spec = programs["moving"].spec
    norm = dataclasses.replace(spec.model, trained=("head/kernel", "norm/scale"))
    assert moving_warnings(dataclasses.replace(spec, model=norm)) == ()


def test_expression_without_a_match_is_an_error():
    with pytest.raises(ConfigError, match=r"'\^head' matches no batch statistics. They are: norm/mean, norm/var"):
        frozen_norms(describe(zoo.Classify("cnn", 4)), "^head")


class Own(nnx.Module):
    """A norm without the attribute that selects the stored statistics."""

    def __init__(self):
        self.mean = nnx.BatchStat(jnp.zeros(2))


class OwnTask(zoo.Classify):
    def build(self, rngs):
        model = super().build(rngs)
        model.norm = Own()
        return model


def test_layer_that_cannot_use_stored_statistics_is_an_error():
    with pytest.raises(ConfigError, match=r"matches norm, a Own, which has no attribute use_running_average"):
        frozen_norms(describe(OwnTask(width=4)), "norm")
