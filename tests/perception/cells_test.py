import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.perception import cell_indices, first_points, occupied_cells

CELLS = 12
INDEX = np.random.default_rng(0).integers(-2, CELLS + 3, (3, 50)).astype(np.int32)


def test_cells_are_numbered_with_x_fastest_and_points_outside_have_no_cell():
    points = jnp.array([[[-1.0, 2.0, 0.0, 9.0], [1.99, 2.0, 0.0, 9.0], [-1.0, 3.49, 1.9, 9.0], [2.0, 2.0, 0.0, 9.0],
                         [-1.01, 2.0, 0.0, 9.0], [1e30, 2.0, 0.0, 9.0], [jnp.nan, 2.0, 0.0, 9.0]]])  # fmt: skip
    shape = (3, 2, 2)
    run = jax.jit(lambda points, valid: cell_indices(points, (-1, 2, 0), (1, 1, 1), shape, valid))
    found = run(points, jnp.ones((1, 7), bool))
    assert found.tolist() == [[0, 2, 9, 12, 12, 12, 12]]
    assert np.unravel_index(9, shape[::-1]) == (1, 1, 0)
    valid = jnp.array([[True, False, True, True, True, True, True]])
    assert run(points, valid).tolist() == [[0, 12, 9, 12, 12, 12, 12]]


@pytest.mark.parametrize("capacity", [5, CELLS + 4])
def test_occupied_cells_equal_numpys_and_the_overflow_is_counted(capacity):
    found = jax.jit(lambda x: occupied_cells(x, CELLS, capacity))(INDEX)
    for row, cells, slots, overflow in zip(INDEX, *(np.asarray(x) for x in found), strict=True):
        wanted = np.unique(row[(row >= 0) & (row < CELLS)])
        kept = wanted[:capacity]
        assert cells.tolist() == [*kept, *[CELLS] * (capacity - len(kept))]
        assert overflow == len(wanted) - len(kept)
        place = {cell: slot for slot, cell in enumerate(kept)}
        assert slots.tolist() == [place.get(cell, capacity) for cell in row]


@pytest.mark.parametrize("count", [3, 60])
def test_first_points_equal_a_loop_and_the_overflow_is_counted(count):
    found = jax.jit(lambda x: first_points(x, CELLS, count))(INDEX)
    for row, places, valid, overflow in zip(INDEX, *(np.asarray(x) for x in found), strict=True):
        lost = 0
        for cell in range(CELLS):
            of = np.flatnonzero(row == cell)
            assert places[cell][valid[cell]].tolist() == of[:count].tolist()
            assert not places[cell][~valid[cell]].any()
            lost += max(len(of) - count, 0)
        assert overflow == lost


def test_examples_without_points_are_empty():
    none = jnp.zeros((2, 0), jnp.int32)
    occupied, first = jax.jit(lambda x: (occupied_cells(x, CELLS, 3), first_points(x, CELLS, 2)))(none)
    assert occupied.cells.tolist() == [[CELLS] * 3] * 2 and not first.valid.any()


def test_points_in_half_precision_or_whole_numbers_are_compared_in_float32():
    low, size, shape = (-0.4, 0), (0.5, 1), (512, 4)
    exact = cell_indices(jnp.array([[129.0, 1], [3, 2]]), low, size, shape)
    for dtype in (jnp.bfloat16, jnp.int32):
        found = cell_indices(jnp.array([[129.0, 1], [3, 2]], dtype), low, size, shape)
        assert found.tolist() == exact.tolist() == [512 + 258, 1024 + 6]


def test_grid_that_does_not_fit_is_an_error():
    with pytest.raises(TaskError, match=r"occupied_cells: capacity = 0\. Allowed are whole numbers from 1"):
        occupied_cells(jnp.asarray(INDEX), CELLS, 0)
    with pytest.raises(TaskError, match="2 lower limits, 3 sizes, 3 numbers of cells and points of 4 numbers"):
        cell_indices(jnp.zeros((1, 4)), (0, 0), (1, 1, 1), (2, 2, 2))
    with pytest.raises(TaskError, match=r"a grid of 40000 x 40000 x 2 cells\. Allowed are 1 to 2,147,483,646"):
        cell_indices(jnp.zeros((1, 4)), (0, 0, 0), (1, 1, 1), (40000, 40000, 2))
