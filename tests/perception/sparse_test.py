import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.perception import SparseGrid, inverse_conv, neighbours, strided_conv, submanifold_conv
from tests.perception.goldens import differing

SHAPE, CELLS, CAPACITY = (3, 4, 5), 60, 12
RNG = np.random.default_rng(0)
INDEX = np.array([[*sorted(RNG.choice(CELLS, 9, replace=False)), *[CELLS] * 3], [CELLS] * 12], np.int32)
FEATURES = np.where(INDEX[..., None] < CELLS, RNG.normal(size=(2, CAPACITY, 3)), np.nan).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 3, 3, 2)).astype(np.float32)
GRID = SparseGrid(jnp.asarray(INDEX), jnp.asarray(FEATURES), SHAPE)


@pytest.mark.parametrize("operation", ["submanifold", "strided", "inverse"])
def test_values_and_gradients_equal_dense_convolutions_of_pytorch(operation):
    assert differing(operation, 4 if operation == "strided" else 2) == []


def test_gradient_of_the_dense_grid_is_read_at_the_sites():
    weight = RNG.normal(size=(2, CELLS, 3)).astype(np.float32)

    def total(features):
        return (SparseGrid(GRID.index, features, SHAPE).dense().reshape(weight.shape) * weight).sum()

    found = jax.jit(jax.grad(total))(jnp.zeros_like(GRID.features))
    np.testing.assert_array_equal(found[0, :9], weight[0, INDEX[0, :9]])
    assert not found[0, 9:].any() and not found[1].any()


def test_values_at_padding_are_not_read_and_an_example_without_sites_is_empty():
    found = jax.jit(submanifold_conv)(GRID, KERNEL)
    assert jnp.isfinite(found.features).all() and (found.features[0, :9] != 0).all()
    assert not found.features[0, 9:].any() and not found.features[1].any()
    assert found.valid.sum(1).tolist() == [9, 0]
    dense = found.dense()
    assert dense.shape == (2, *SHAPE, 2)
    np.testing.assert_array_equal(dense[0].reshape(CELLS, 2)[INDEX[0, :9]], found.features[0, :9])


def test_table_of_neighbours_names_each_site_once_and_is_its_own_transpose():
    table = np.asarray(jax.jit(neighbours)(GRID))
    at = np.stack(np.unravel_index(INDEX[0, :9], SHAPE), -1)
    for k, offset in enumerate(np.ndindex(3, 3, 3)):
        moved = (at + offset - 1).tolist()
        wanted = [at.tolist().index(place) if place in at.tolist() else CAPACITY for place in moved]
        assert np.minimum(table[k, 0, :9], CAPACITY).tolist() == wanted
        assert [table[26 - k, 0, place] for place in wanted if place < 9] == [i for i in range(9) if wanted[i] < 9]
    assert (table[:, 0, 9:] >= CAPACITY).all() and (table[:, 1] >= CAPACITY).all()
    assert all(len(set(row)) == CAPACITY for row in table.reshape(-1, CAPACITY).tolist())
    own = jax.jit(submanifold_conv)(GRID, KERNEL)
    shared = jax.jit(submanifold_conv)(GRID, KERNEL, table)
    np.testing.assert_array_equal(shared.features, own.features)


def test_sites_beyond_the_capacity_are_counted_and_the_first_ones_are_right():
    run = jax.jit(strided_conv, static_argnames=("stride", "padding", "capacity"))
    whole, none = run(GRID, KERNEL, stride=2, padding=1, capacity=12)
    part, lost = run(GRID, KERNEL, stride=2, padding=1, capacity=4)
    assert whole.shape == (2, 2, 3) and none.tolist() == [0, 0]
    count = int(whole.valid[0].sum())
    assert count > 4 and lost.tolist() == [count - 4, 0]
    np.testing.assert_array_equal(part.index, whole.index[:, :4])
    np.testing.assert_allclose(part.features, whole.features[:, :4], rtol=1e-6)


def test_sizes_that_do_not_fit_are_an_error():
    with pytest.raises(TaskError, match=r"a kernel of 3 x 2 x 3\. Allowed are odd sizes"):
        submanifold_conv(GRID, jnp.zeros((3, 2, 3, 3, 2)))
    with pytest.raises(TaskError, match=r"neighbours: a kernel of 3 x 3 x 2\. Allowed are odd sizes"):
        neighbours(GRID, (3, 3, 2))
    with pytest.raises(TaskError, match=r"a table of shape \(3, 2, 12\)\. The sites and the kernel need \(27, 2, 12\)"):
        submanifold_conv(GRID, jnp.asarray(KERNEL), jnp.zeros((3, 2, 12), jnp.int32))
    with pytest.raises(TaskError, match="SparseGrid: a grid of 2000 x 2000 x 2000 cells"):
        SparseGrid(GRID.index, GRID.features, (2000, 2000, 2000))
    for conv in (functools.partial(strided_conv, capacity=4), functools.partial(inverse_conv, like=GRID)):
        with pytest.raises(TaskError, match=r"_conv: stride = 0\. Allowed are whole numbers from 1\."):
            conv(GRID, jnp.zeros((3, 3, 3, 3, 2)), stride=0, padding=1)
