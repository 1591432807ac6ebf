"""The set model gives the same losses and gradients from padded, bucketed and packed scenes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.scenes import NextStep, Scenes
from engine import Balanced, Bucketed, Packed, Padded
from engine.data.batches import Batches, OrderedBatches

FIELDS = ("agents", "step")
SCENES = Scenes(count=24, most=60)
TASK = NextStep(width=8, depth=1, heads=2)
GRAPH, PARAMS = nnx.split(TASK.build(nnx.Rngs(0)))
BUCKETED = Bucketed(SCENES, [10, 25, 60], FIELDS)


@jax.jit
def sums(params, batch):
    """Returns the gradient of the summed loss, and the sums of the loss, its weight and the metric."""

    def total(params):
        loss: Any = TASK.loss(nnx.merge(GRAPH, params), batch, None)
        return loss.total.sum(), (loss.weight.sum(), loss.metrics["distance"].total.sum())

    (loss, (weight, distance)), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return gradient, jnp.stack([loss, weight, distance])


def mean_of(batches) -> Any:
    """Returns the gradient of the mean loss, the mean loss and the mean distance over all batches."""
    found = [sums(PARAMS, batch) for batch in batches]
    gradient, totals = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *found)
    return jax.tree.map(lambda x: x / totals[1], (gradient, totals))


def epoch(source, batch_size):
    """Returns the batches of the first epoch; the batch size divides the number of examples."""
    batches = Batches(source, batch_size, 3, True)
    return [batches[n].examples for n in range(len(source) // batch_size)]


@pytest.mark.slow
def test_padded_bucketed_and_packed_scenes_have_equal_losses_and_gradients():
    expected = mean_of(epoch(Padded(SCENES, 60, FIELDS), 8))
    packed = Packed(SCENES, 80, fields=FIELDS)
    for batches in (
        epoch(BUCKETED, 8),
        epoch(Balanced(BUCKETED, 4), 8),
        epoch(Padded(SCENES, [10, 25, 60], FIELDS), 8),
        epoch(packed, len(packed)),
        epoch(Packed(SCENES, 80, fields=FIELDS, segments=3), 1),
    ):
        found = mean_of(batches)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
    assert float(np.abs(jax.tree.leaves(expected[0])[0]).max()) > 1e-3


def test_evaluations_of_padded_bucketed_and_packed_scenes_are_equal():
    found = []
    packed = Packed(SCENES, 80, fields=FIELDS)
    for source, batch_size in ((Padded(SCENES, 60, FIELDS), 8), (BUCKETED, 8), (packed, len(packed))):
        ordered = OrderedBatches(source, batch_size)
        found.append(mean_of([ordered[n].examples for n in range(len(ordered))])[1])
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], rtol=1e-6)


def test_order_of_the_agents_and_the_other_scenes_have_no_effect():
    model = nnx.jit(TASK.build(nnx.Rngs(1)))
    agents, ids = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 4))), jnp.array([[1] * 5 + [2] * 7])
    wind = jnp.zeros((1, 12, 2))
    found = model(agents, wind, ids)
    order = jnp.array([4, 0, 2, 1, 3, *range(5, 12)])
    np.testing.assert_allclose(model(agents[:, order], wind, ids), found[:, order], atol=1e-6)
    np.testing.assert_allclose(model(agents.at[:, 5:].add(1.0), wind, ids)[:, :5], found[:, :5], atol=1e-6)


def test_scenes_have_3_to_300_agents_and_depend_on_the_index_only():
    scenes = Scenes()
    assert (scenes.lengths().min(), scenes.lengths().max()) == (3, 300)
    assert np.median(scenes.lengths()) == pytest.approx(15, abs=1)
    np.testing.assert_equal(scenes[7], Scenes()[7])
    assert all(len(scenes[index]["agents"]) == scenes.lengths()[index] for index in (0, 50, 1999))
