"""Grids from cameras: cells that read the images by deformable attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from convoy_zoo.models.street.camera_encoders import (
    HEIGHTS,
    POINTS,
    CameraAttention,
    QueryLayer,
    best_views,
    projected,
)
from engine import perception
from tests.models.dataset_subjects import camera_drives

AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], np.float32)  # at a height of 1.5 m


def frames(rows):
    """Returns intrinsics and poses of two cameras, that look ahead and back."""
    batch = camera_drives(rows, 0, times=1)
    return tuple(jnp.asarray(batch[name][:, 0]) for name in ("intrinsics", "poses"))


def test_points_are_seen_in_front_of_a_camera_and_within_its_image():
    intrinsics = np.array([[16, 0, 15.5], [0, 16, 5.5], [0, 0, 1]], np.float32)
    points = jnp.array([[4.0, 0, 1.5], [4, -2, 0.5], [-4, 0, 1.5], [0.4, 0, 1.5], [4, 4.1, 1.5], [4, 0, 3.5]])
    place, seen = projected(points, intrinsics[None, None], AHEAD[None, None], (16, 32))
    assert seen[0, 0].tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(place[0, 0, :2], [[0.5, 6 / 16], [24 / 32, 10 / 16]], atol=1e-6)
    assert not place[0, 0, 2:].any()


def test_a_cell_reads_the_cameras_that_see_most_of_it_and_others_are_counted():
    seen = np.zeros((1, 3, 2, 4), bool)  # [batch, cameras, cells, heights]
    seen[0, 0, 0, :1] = seen[0, 1, 0, :3] = seen[0, 2, 0, :2] = seen[0, 2, 1] = True
    places = jnp.arange(3.0)[None, :, None, None, None] * jnp.ones((1, 3, 2, 4, 2))
    camera, found, kept, lost = best_views(places, jnp.asarray(seen), 2)
    assert camera[0, 0].tolist() == [1, 2] and camera[0, 1, 0] == 2 and lost.tolist() == [1]
    assert (found == camera[..., None, None]).all()
    assert kept.sum(-1).tolist() == [[[3, 2], [4, 0]]]


@pytest.fixture(scope="module")
def attention():
    """An attention with random offsets of up to some patches, its inputs, and its result and gradient."""
    rng = np.random.default_rng(0)
    layer = CameraAttention(8, 2, nnx.Rngs(0))
    for part in (layer.offset, layer.weight):
        part.kernel.set_value(jnp.asarray(rng.normal(size=part.kernel.get_value().shape), jnp.float32))
    queries, maps = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 6, 8), (1, 3, 4, 5, 8)))
    places = jnp.asarray(rng.uniform(0, 1, (1, 6, 2, len(HEIGHTS), 2)), jnp.float32)
    seen = rng.random((1, 6, 2, len(HEIGHTS))) < 0.7
    seen[0, 2, 1], seen[0, 3] = False, False  # a cell that one camera sees, and one that none does
    views = jnp.asarray([[[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1]]]), places, jnp.asarray(seen)
    run = jax.jit(lambda maps: layer(queries, views, maps))
    gradient = jax.jit(jax.grad(lambda maps, cell: layer(queries, views, maps)[0, cell].sum()))
    return layer, (queries, views, maps), run(maps), gradient


def test_attention_is_the_mean_of_that_to_each_camera(attention):
    layer, (queries, (camera, places, seen), maps), found, _ = attention
    offsets = layer.offset(queries).reshape(1, 6, 2, len(HEIGHTS), POINTS, 2)
    weights = jax.nn.softmax(layer.weight(queries).reshape(1, 6, 2, -1)).reshape(1, 6, 2, len(HEIGHTS), POINTS)
    for cell in (0, 2):
        total, views = jnp.zeros(8), max(int(seen[0, cell].any(-1).sum()), 1)
        for number in range(2):
            level = layer.value(maps[:, camera[0, cell, number]]).reshape(1, 4, 5, 2, 4)
            at = places[0, cell, number, None, :, None] + offsets[0, cell] / jnp.array([5, 4])
            use = weights[0, cell] * seen[0, cell, number, None, :, None] / views
            one = [x.reshape(1, 1, 2, 1, -1, *x.shape[3:]) for x in (at, use)]
            total = total + perception.deformable_attention([level], *one)[0, 0]
        np.testing.assert_allclose(found[0, cell], layer.out(total), atol=2e-6)


def test_cameras_that_do_not_see_a_cell_have_no_part_in_it(attention):
    _, _, _, gradient = attention
    assert [gradient(attention[1][2], cell)[0].any((1, 2, 3)).tolist() for cell in (0, 2, 3)] == [
        [True, True, False],
        [False, False, True],
        [False, False, False],
    ]


def test_rows_on_eight_devices_equal_those_on_one():
    layer = QueryLayer(8, 2, nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x, maps = (jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate([(8, 16, 8), (8, 2, 2, 4, 8)]))
    points = jax.random.uniform(jax.random.key(2), (16, len(HEIGHTS), 3), minval=-4, maxval=4)
    batch = x, maps, *frames(8)

    @jax.jit
    def run(state, batch):
        x, maps, intrinsics, poses = batch

        def loss(state, maps):
            *views, lost = best_views(*projected(points, intrinsics, poses, (16, 32)), 2)
            found = nnx.merge(graph, state)(x, views, maps)
            return (found**2 * jnp.arange(8)).sum(), (found, lost)

        return jax.grad(loss, (0, 1), has_aux=True)(state, maps)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    one, two = run(state, batch), run(jax.device_put(state, whole), jax.device_put(batch, split))
    assert two[1][0].sharding.spec[0] == "data" and not one[1][1].any()
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6 * float(abs(left).max()))
