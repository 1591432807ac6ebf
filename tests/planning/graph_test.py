import jax
import jax.numpy as jnp
import pytest

from engine.planning.graph import make_graph

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
