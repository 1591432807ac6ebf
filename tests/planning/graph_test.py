import jax
import jax.numpy as jnp
import pytest

from engine.planning.graph import make_graph, parts_by_rows

F32 = jnp.float32


def graph_of(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
    return make_graph(jax.make_jaxpr(function)(*args).jaxpr)


def test_peak_counts_arrays_from_their_product_to_their_last_use():
    """Two products in a row: the first result lives until the second is written."""
    graph = graph_of(lambda x, w, v: (x @ w) @ v, (8, 16), (16, 32), (32, 4))
    assert graph.peak == 4 * (8 * 32 + 8 * 4)


def test_elementwise_results_with_one_reader_need_no_memory():
    graph = graph_of(lambda x, w: jnp.tanh(x @ w + 1.0).sum(), (8, 16), (16, 32))
    assert graph.peak == 4 * (8 * 32 + 1)


def test_unused_products_are_left_out():
    def function(x, w):
        _ = x @ w
        return x.sum()

    assert not any(o.name == "dot_general" for o in graph_of(function, (8, 16), (16, 32)).operations)


def test_gradient_of_a_scan_keeps_the_residuals_of_all_layers():
    """`tanh` keeps its result in each of 5 layers, and the scan the input of each: 2 stacks `[5, 8, 16]`."""

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    graph = graph_of(jax.grad(loss), (5, 16, 16), (8, 16))
    residuals, gradient = 2 * 5 * 8 * 16 * 4, 5 * 16 * 16 * 4
    assert residuals + gradient <= graph.peak <= residuals + gradient + 8 * 8 * 16 * 4
    remat = graph_of(jax.grad(lambda w, x: jax.checkpoint(loss)(w, x)), (5, 16, 16), (8, 16))
    assert remat.peak >= residuals  # the whole loss is computed again
    compiled = jax.jit(jax.grad(loss)).lower(*(jax.ShapeDtypeStruct(s, F32) for s in ((5, 16, 16), (8, 16)))).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert graph.peak == pytest.approx(memory.temp_size_in_bytes + gradient, rel=0.3)


def test_stacks_of_two_views_of_an_array_count_once():
    def peak(views):
        def layer(x, w):
            first, second = (x.reshape(8, 16) for _ in range(2)) if views == 2 else [x.reshape(8, 16)] * 2
            return jnp.sin(first @ w[0] + second @ w[1]).reshape(2, 4, 16), None

        return graph_of(jax.grad(lambda w, x: jax.lax.scan(layer, x, w)[0].sum()), (5, 2, 16, 16), (2, 4, 16)).peak

    assert peak(views=2) == peak(views=1)


def test_broadcasts_and_the_zeros_of_a_loop_need_no_memory():
    def function(x, w):
        total = jax.lax.scan(lambda sum, _: (sum + x @ w, None), jnp.zeros((8, 32)), None, length=3)[0]
        return jnp.broadcast_to(x[:, None], (8, 32, 16)).sum(1) @ w + total

    assert graph_of(function, (8, 16), (16, 32)).peak < 4 * (5 * 8 * 32 + 8 * 16)


def test_bytes_of_a_program_are_those_of_its_rows_and_of_the_rest():
    def of_rows(rows):
        return graph_of(lambda x, v, w: x @ (v @ w), (rows, 16), (16, 16), (16, 32))

    parts = parts_by_rows(of_rows(64), of_rows(128))
    assert parts is not None
    assert parts[0].peak == 4 * 16 * 32 and parts[1].peak == 4 * 64 * 32
    assert parts_by_rows(of_rows(64), graph_of(lambda x, w: x @ w, (128, 16), (16, 32))) is None
