"""The detector finds what it was trained on, and counts the voxels that it leaves out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from convoy_zoo.models.street.centers import CenterDetection, Space, decode, encode

TASK: dict[str, Any] = {
    "lower": (-8.0, -8.0, -1.0),
    "upper": (8.0, 8.0, 3.0),
    "cells": (8, 8),
    "groups": (("van",), ("person", "cone")),
    "classes": ("cone", "van", "person"),
    "inputs": 4,
    "width": 8,
}


def sweeps(rows: int = 4, seed: int = 0):
    """Sweeps of a van and a person each, with points on their surface; the last object is padding."""
    rng = np.random.default_rng(seed)
    centre = np.stack([rng.uniform(-7, -1, (rows, 2)), rng.uniform(1, 7, (rows, 2))], 1)
    boxes = np.zeros((rows, 3, 9), np.float32)
    boxes[:, :2, :2], boxes[:, :2, 2] = centre, 0.9
    boxes[:, 0, 3:], boxes[:, 1, 3:] = [4, 1.8, 1.6, 0.6, 3, 1], [0.6, 0.6, 1.8, -1, np.nan, np.nan]
    points = boxes[:, [0, 1], None, :3] + rng.uniform(-0.5, 0.5, (rows, 2, 30, 3)) * boxes[:, [0, 1], None, 3:6]
    points = np.concatenate([points.reshape(rows, 60, 3), np.zeros((rows, 60, 1))], -1).astype(np.float32)
    mask = {"points": np.ones((rows, 60), bool), "objects": np.tile([True, True, False], (rows, 1))}
    return {"points": points, "boxes": boxes, "label": np.tile([1, 2, 0], (rows, 1)).astype(np.int32), "mask": mask}


def test_code_of_a_box_is_inverted():
    space = Space((-8.0, -8.0, -1.0), (8.0, 8.0, 3.0), (8, 8))
    boxes = jnp.asarray(sweeps()["boxes"][:, 0])
    cell = jnp.floor(space.place(boxes[:, :2]))
    np.testing.assert_allclose(decode(encode(boxes, cell, space), cell, space), boxes, atol=1e-5)


def test_detector_that_is_trained_on_voxels_finds_its_objects():
    task, batch = CenterDetection(**TASK, predictions=4, capacity=120, voxels=4), sweeps()
    model = task.build(nnx.Rngs(0))
    optimizer = optax.adam(1e-2)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        found = task.loss(model, batch, jax.random.key(0))
        value = sum(term.total.sum() / term.weight.sum() for term in found.terms.values())
        lost: Any = found.terms["heat"].metrics["points_lost"]
        return value, (nnx.state(model, nnx.Not(nnx.Param)), lost.total)

    @jax.jit
    def train(params, rest):
        def step(carry, _):
            params, rest, state = carry
            (value, (rest, lost)), gradient = jax.value_and_grad(loss, has_aux=True)(params, rest)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), rest, state), (value, lost)

        carry, found = jax.lax.scan(step, (params, rest, optimizer.init(params)), length=120)
        return carry[0], carry[1], found

    params, rest, (losses, lost) = train(params, rest)
    assert lost.max() == 0 and losses[-1] < 0.1 * losses[0]

    @jax.jit
    def predict(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        model.eval()
        return task.predict(model, batch)

    found = predict(params, rest)
    order = np.argsort(found["label"][:, :2], axis=1)
    assert np.take_along_axis(np.asarray(found["label"][:, :2]), order, 1).tolist() == [[1, 2]] * 4
    boxes = np.take_along_axis(np.asarray(found["boxes"][:, :2]), order[..., None], 1)
    error = np.nan_to_num(boxes - batch["boxes"][:, :2])
    assert np.abs(error[..., :7]).max() < 0.8 and np.abs(error[..., 7:]).max() < 1.5
    assert float(found["score"][:, :2].min()) > 0.5 > float(found["score"][:, 2:].max())


def test_voxels_beyond_the_capacity_are_counted():
    task, batch = CenterDetection(**TASK, voxels=4, capacity=10), sweeps(2)
    encoder = task.build(nnx.Rngs(0)).encoder
    encoder.eval()
    x, lost = jax.jit(lambda *sweep: encoder(*sweep))(batch["points"], batch["mask"]["points"])
    size = np.array([0.5, 0.5, 1.0])
    cells = [len(np.unique(np.floor((row[:, :3] + [8, 8, 1]) / size), axis=0)) for row in batch["points"]]
    assert x.shape == (2, 8, 8, 8) and bool(jnp.isfinite(x).all())
    assert (np.asarray(lost) >= np.array(cells) - 10).all() and min(cells) > 10
