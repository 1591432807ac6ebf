"""Stochastic depth: rates, rows, and independence of the other rows of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.backbones import catalog
from convoy_zoo.models.backbones.stochastic_depth import drop_path, rates
from engine import TaskError

TINY = {
    "resnet18": {"depth": (2,), "width": 2, "stem": 2, "bottleneck": False},
    "convnext_tiny": {"depths": (2,), "widths": (4,)},
    "swin_tiny_patch4_window7_224": {"depths": (2,), "heads": (1,), "width": 4, "window": 2},
    "regnetx_002": {"depths": (2,), "widths": (4,), "group": 2, "stem": 2},
    "vit_small_patch16_224": {"width": 4, "heads": 2, "depth": 2, "patch": 4, "size": (8, 8)},
}


def test_rates_grow_to_that_of_the_last_block():
    assert rates(0.3, (1, 3)) == [[0.0], [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]]
    assert rates(0.3, (1,)) == [[0.0]]
    with pytest.raises(TaskError, match=r"drop_path = 1\. Allowed: 0 and more, below 1"):
        rates(1, (2, 2))


def test_whole_rows_are_left_out_and_the_others_keep_the_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(drop_path(jnp.ones((4000, 3)), 0.25, keys))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)} and (found == found[:, :1]).all()
    assert abs(found.mean() - 1) < 0.03
    half = drop_path(jnp.ones((4000, 3)), jnp.where(jnp.arange(4000) < 2000, 0.0, 0.5), keys)
    assert (half[:2000] == 1).all() and 0.45 < float((half[2000:] == 0).mean()) < 0.55
    assert (drop_path(jnp.ones((2, 3)), 0.25, None) == 1).all()


@pytest.mark.parametrize("name", TINY)
def test_rows_do_not_depend_on_their_batch(name):
    """So accumulated microbatches equal the whole batch. Rows with the same key are equal, others are not."""
    model: Any = catalog.create(name, rngs=nnx.Rngs(0), drop_path=0.9, **TINY[name])
    model.eval()
    for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == "gamma":  # initially, it almost removes a branch
            x.set_value(jnp.ones_like(x.get_value()))
    images = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 8, 8, 3)), (8, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 8)
    run = nnx.jit(lambda model, images, rng: model(images, rng))
    whole = run(model, images, keys)
    parts = [run(model, images[i : i + 4], keys[i : i + 4]) for i in (0, 4)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=1e-5, atol=1e-6)
    assert 2 <= len(np.unique(np.asarray(whole).round(4), axis=0)) <= 4
    full = nnx.jit(lambda model, images: model(images))(model, images[:1])
    assert np.abs(np.asarray(whole) - full).max() > 1e-3
