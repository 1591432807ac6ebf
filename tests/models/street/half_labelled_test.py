"""Two datasets, each with the labels of one kind: each trains its own head, and both the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.street.camera_scenes import MASKS, CameraScenes
from convoy_zoo.models.street.half_labelled import Labelled, TwoMasks


@pytest.mark.parametrize("kind", MASKS)
def test_examples_have_the_labels_of_one_kind(kind):
    found, scene = Labelled(kind, 1, seed=7)[0], CameraScenes(1, seed=7)[0]
    np.testing.assert_array_equal(found.pop("mask"), scene["masks"][..., MASKS.index(kind)])
    assert found.keys() == {"images", "intrinsics", "poses", "depth"}


def test_each_dataset_trains_its_own_head_and_the_rest():
    task = TwoMasks(width=8)
    graph, params, rest = nnx.split(task.build(nnx.Rngs(0)), nnx.Param, ...)
    scenes = jax.tree.map(lambda x: jnp.asarray(x)[None], Labelled("lane", 1)[0])

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        terms = task.loss(model, {"lane": scenes}, None)
        assert terms.keys() == {"lane"}
        return sum(term.total.sum() for term in terms["lane"].terms.values())

    grads = jax.tree.map(lambda x: bool(jnp.any(x)), nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    assert grads["heads"]["lane"]["kernel"] and not grads["heads"]["vehicle"]["kernel"]
    assert grads["cameras"]["lift"]["kernel"] and grads["above"]["neck"]["conv"]["kernel"]
