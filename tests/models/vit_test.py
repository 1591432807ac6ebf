"""The vision transformer: patches, logits and accuracy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.vit import Vit
from engine import TaskError
from tests import zoo

TASK = Vit(size=8, patch=4, width=16, depth=2, heads=2)


@pytest.mark.slow
def test_vit_returns_a_logit_per_class_and_counts_correct_predictions():
    model = TASK.build(nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8)), jnp.uint8)
    logits = model(images)
    assert logits.shape == (3, 10)
    loss: Any = TASK.loss(model, {"image": images, "label": logits.argmax(-1).at[0].add(1)}, None)
    assert loss.total.shape == (3,) and float(loss.metrics["accuracy"].total.sum()) == 2


def test_patches_that_do_not_divide_the_image_are_refused():
    with pytest.raises(TaskError, match=r"task.patch = 5 does not divide task.size = 28"):
        Vit(patch=5)


def test_each_pixel_affects_only_its_patch():
    model: Any = TASK.build(nnx.Rngs(0))
    model.stack = lambda x, rng: x
    seen = []
    model.norm = lambda x: seen.append(x) or x
    for pixel in ((0, 0), (3, 4), (4, 3)):
        model(jnp.zeros((1, 8, 8), jnp.uint8).at[0, *pixel].set(255))
    model(jnp.zeros((1, 8, 8), jnp.uint8))
    moved = [np.flatnonzero(jnp.abs(x - seen[-1]).sum(-1)[0]) for x in seen[:-1]]
    assert [list(patches) for patches in moved] == [[0], [1], [2]]
    assert jax.tree.leaves(moved)


def test_flops_of_a_step_are_those_of_the_closed_formula():
    """6 N + 12 L H Q T per patch, but the embedding computes no gradient of the image; the head sees one vector."""
    rows, patches, width, layers = 4, 4, 16, 2
    example = {"image": jax.ShapeDtypeStruct((8, 8), np.uint8), "label": jax.ShapeDtypeStruct((), np.int32)}
    program = zoo.program(TASK, batch_size=rows, example=example)
    of_patch = 4 * 16 * width + 6 * layers * 12 * width**2 + 12 * layers * width * patches
    assert program.flops_per_step == rows * (patches * of_patch + 6 * width * 10)
