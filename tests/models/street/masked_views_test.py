"""Pretraining without labels, whose backbone `bev.Views` then starts from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convoy_zoo.models.street.bev import Views
from convoy_zoo.models.street.camera_scenes import CameraScenes
from convoy_zoo.models.street.masked_views import MaskedViews
from engine import Context

BACKBONE = {"width": 8, "backbone": "resnet18"}
SETTINGS = {"depth": (1, 1), "width": 4, "stem": 4, "bottleneck": False}


def scenes() -> dict[str, Any]:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], CameraScenes(1)[0])


def arrays(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(state)}


def test_the_model_does_not_see_hidden_pixels():
    model: Any = MaskedViews(**BACKBONE, settings=SETTINGS).build(nnx.Rngs(0))
    model.eval()
    batch = scenes()
    hidden = np.zeros((1, 6, 6, 32), bool)
    hidden[0, 2, 2:4, 8:12] = True
    noise = batch["images"].at[0, 2, 16:32, 32:48].set(jax.random.bits(jax.random.key(0), (16, 16, 3), jnp.uint8))
    run = jax.jit(lambda images, hidden: model(images, batch["intrinsics"], hidden))
    np.testing.assert_array_equal(run(noise, hidden), run(batch["images"], hidden))
    shown = np.zeros_like(hidden)
    assert np.abs(run(noise, shown) - run(batch["images"], shown)).max() > 1e-3


def test_the_loss_is_over_hidden_patches_and_trains_the_whole_model():
    task = MaskedViews(**BACKBONE, settings=SETTINGS)
    graph, params, rest = nnx.split(task.build(nnx.Rngs(0)), nnx.Param, ...)
    context = Context(0, 0.0, 1, jax.random.split(jax.random.key(0), 1))

    def total(params):
        loss = task.loss(nnx.merge(graph, params, rest, copy=True), scenes(), None, context)
        return loss.total.sum(), loss.weight.sum()

    (_, weight), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    blocks = 3 * 8
    assert weight == 6 * round(0.6 * blocks) * 2 * 4  # cameras, hidden blocks, patches of a block
    still = [path for path, x in arrays(grads).items() if not x.any()]
    assert not still


def test_the_backbone_has_the_arrays_of_the_camera_task():
    pretrained, tuned = (task(**BACKBONE, settings=SETTINGS).build(nnx.Rngs(0)) for task in (MaskedViews, Views))
    shapes = [{path: x.shape for path, x in arrays(nnx.state(model)).items()} for model in (pretrained, tuned)]
    below = [{path: x for path, x in found.items() if path.startswith("backbone/")} for found in shapes]
    assert below[0] == below[1] and len(below[0]) > 20
    assert shapes[1].keys() - below[1].keys() == {"head/kernel", "head/bias"}
