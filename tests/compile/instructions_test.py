import jax
import jax.numpy as jnp
import pytest

from engine.compile.hlo_text import HloText
from engine.compile.instructions import Executed, executed

SIZE = 64


def found(function, *shapes) -> list[Executed]:
    """Returns the instructions of a function of float32 arrays, compiled for one device."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return list(executed(HloText.parse(jax.jit(function).lower(*arguments).compile().as_text() or "")))


def totals(function, *shapes) -> tuple[int, int]:
    """Returns the FLOPs and the bytes of a function."""
    instructions = found(function, *shapes)
    return sum(i.times * i.flops for i in instructions), sum(i.times * i.bytes for i in instructions)


def test_a_product_counts_its_flops_and_the_three_arrays():
    flops, moved = totals(lambda x, y: x @ y, (SIZE, 2 * SIZE), (2 * SIZE, 4 * SIZE))
    assert flops == 2 * SIZE * 2 * SIZE * 4 * SIZE
    assert moved == 4 * SIZE**2 * (2 + 8 + 4)


def test_a_fusion_moves_what_it_reads_and_writes():
    flops, moved = totals(lambda x: jnp.tanh(x * 2.0) + x, (SIZE, SIZE))
    assert flops == 0 and moved == 2 * 4 * SIZE**2


def test_a_loop_counts_as_often_as_it_runs():
    def run(x, y):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ y), x)

    flops, moved = totals(run, (SIZE, SIZE), (SIZE, SIZE))
    assert flops == 7 * 2 * SIZE**3
    assert 7 * 3 * 4 * SIZE**2 <= moved <= 10 * 5 * 4 * SIZE**2  # XLA may copy the state of the loop


def test_a_slice_and_an_update_in_a_loop_move_a_part_of_the_array():
    def run(x):
        def twice(i, x):
            row = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(x, 2.0 * row, i, 0)

        return jax.lax.fori_loop(0, 100, twice, x)

    _, moved = totals(run, (100, SIZE * SIZE))
    assert moved < 100 * 8 * 4 * SIZE**2  # the whole array in each iteration would be 100 times as much


def test_a_convolution_counts_its_products():
    def run(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    flops, _ = totals(run, (2, 16, 16, 8), (3, 3, 8, 32))
    assert flops == pytest.approx(2 * 2 * 16 * 16 * 32 * 9 * 8)
