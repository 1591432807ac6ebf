"""Operations on a mesh whose devices split the batch: equal to one device, and no example is sent to another device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine import perception
from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

BATCH, POINTS, CELLS = 4, 24, 16
ENCODER = perception.PolylineEncoder(2, 4, layers=1, rngs=nnx.Rngs(0))


def inputs():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 4, (BATCH, POINTS, 2))
    return {
        "map": rng.normal(size=(BATCH, 4, 4, 3)).astype(np.float32),
        "places": rng.uniform(-1, 1, (BATCH, POINTS, 2)).astype(np.float32),
        "points": low.astype(np.float32),
        "boxes": np.concatenate([low, low + rng.uniform(0.5, 2, low.shape)], -1).astype(np.float32),
        "scores": rng.random((BATCH, POINTS), np.float32),
        "cost": rng.random((BATCH, 6, 4), np.float32),
    }


def scatters(x):
    """Pillars, and a sparse convolution of them."""
    index = perception.cell_indices(x["points"], (0, 0), (1, 1), (4, 4))
    found = perception.occupied_cells(index, CELLS, 8)
    features = perception.scatter_max(x["places"], found.slots, 8)
    grid = perception.SparseGrid(found.cells, features, (1, 4, 4))
    kernel = jnp.arange(1.0, 1 + 27 * 2).reshape(3, 3, 3, 2, 1) / 54
    first = perception.first_points(index, CELLS, 2)
    return perception.submanifold_conv(grid, kernel).features, found.overflow, first


def samples(x):
    at = jnp.zeros((BATCH, POINTS, 1), jnp.int32).at[:, ::2].set(3)
    levels = [x["map"][..., :2].reshape(BATCH, 4, 4, 2, 1)]
    read = x["points"].reshape(BATCH, 4, 2, 1, 3, 2) / 4
    return (
        perception.grid_sample(x["map"], x["places"]),
        perception.lift_splat(x["places"], x["scores"][..., None], at, 4),
        perception.deformable_attention(levels, read, read[..., 0]),
    )


def sets(x):
    """Polylines, two sets of points, and boxes that lower each other's scores."""
    lines = x["points"].reshape(BATCH, 4, 6, 2)
    return (
        ENCODER(lines, lines[..., 0] > 0.5),
        perception.chamfer_distance(x["points"], x["places"]),
        perception.soft_nms(x["boxes"], x["scores"], 3),
    )


def boxes(x):
    return (
        perception.nms(x["boxes"], x["scores"], 8, threshold=0.1),
        perception.match(x["cost"]),
        perception.heatmap_peaks(x["map"], 5),
    )


def on(mesh, function):
    """Returns the results and collectives of operations, and of their gradients unless they only choose boxes."""

    def run(x):
        with active(Layout(mesh=mesh)):
            if function is boxes:
                return function(x)
            value, pull = jax.vjp(function, x)
            one = jax.tree.map(
                lambda y: jnp.ones(y.shape, y.dtype if y.dtype == jnp.float32 else jax.dtypes.float0), value
            )
            return value, pull(one)

    x = inputs()
    if mesh is not None:
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    program = jax.jit(run).lower(x).compile()
    found = [] if mesh is None else collectives(program.as_text() or "", mesh)
    return jax.device_get(program(x)), found


@pytest.mark.parametrize("function", [scatters, samples, sets, boxes])
def test_split_batch_gives_equal_results_and_sends_nothing(function):
    mesh = make_mesh(MeshSpec(data=2, fsdp=2), jax.devices()[:4])
    wanted, _ = on(None, function)
    found, sent = on(mesh, function)
    assert sent == []
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, wanted)


def test_gradient_of_a_sparse_kernel_is_exchanged_once():
    rng, mesh = np.random.default_rng(0), make_mesh(MeshSpec(data=2, fsdp=2), jax.devices()[:4])
    x, kernel = inputs()["places"][:, :8], rng.normal(size=(1, 3, 3, 2, 1)).astype(np.float32)
    index = np.sort([rng.choice(CELLS, 8, replace=False) for _ in range(BATCH)], axis=1).astype(np.int32)

    def loss(kernel, x, index):
        grid = perception.SparseGrid(index, x, (1, 4, 4))
        grid, _ = perception.strided_conv(grid, kernel, stride=2, padding=1, capacity=8)
        return (grid.features**2).sum()

    split, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
    program = jax.jit(jax.grad(loss), in_shardings=(whole, split, split), out_shardings=whole)
    program = program.lower(kernel, x, index).compile()
    sent = collectives(program.as_text() or "", mesh)
    assert [(found.kind, found.count, found.bytes) for found in sent] == [("all-reduce", 1, kernel.nbytes)]
    np.testing.assert_allclose(program(kernel, x, index), jax.grad(loss)(kernel, x, index), rtol=1e-5)
