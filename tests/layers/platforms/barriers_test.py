"""Barriers return their arguments, and XLA respects the order, the single computation and the memory layout."""

import jax
import jax.numpy as jnp
import numpy as np

from engine.layers.platforms import barriers
from engine.parallel.layout import Layout, active
from tests.layers.blocks import LikeTpu

X = jax.random.normal(jax.random.key(0), (4, 8, 16))


def compiled(function, *args):
    """Returns the text of the optimized program."""
    return str(jax.jit(function).lower(*args).compile().as_text())


def in_fusions(program, operation):
    """Returns the number of computations of the program that contain an operation."""
    return sum(f" {operation}(" in text for text in program.split("\n\n"))


def test_barriers_return_their_arguments():
    tree = {"a": X, "b": (X + 1, None)}
    jax.tree.map(np.testing.assert_array_equal, jax.jit(barriers.compute_once)(tree), tree)
    np.testing.assert_array_equal(jax.jit(barriers.compute_once_on_cpu)(X), X)
    for function in (barriers.one_after_another, barriers.row_major):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(X, X + 1), (X, X + 1))


def test_compute_once_prevents_recomputation():
    def twice(x, barrier):
        y = barrier(jnp.cos(x))
        return y.max(axis=-1), (y * y).sum(axis=0)

    assert in_fusions(compiled(lambda x: twice(x, lambda y: y), X), "cosine") > 1
    assert in_fusions(compiled(lambda x: twice(x, barriers.compute_once), X), "cosine") == 1
    assert in_fusions(compiled(lambda x: twice(x, barriers.compute_once_on_cpu), X), "cosine") == 1


def test_one_after_another_holds_the_temporaries_of_one_block():
    def memory(barrier):
        def blocks(x):
            parts = []
            for i in range(8):
                x, parts = barrier(x, parts)
                parts.append(jax.nn.softmax(x @ x.T + i) @ x)
            return jnp.stack(parts)

        analysis = jax.jit(blocks).lower(jnp.ones((512, 4))).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    scores = 4 * 512**2  # bytes of one block
    assert memory(barriers.one_after_another) < 2 * scores
    assert memory(lambda *values: values) > 7 * scores


def test_row_major_transposes_an_array_once():
    def slices(x, constrain):
        (y,) = constrain(x.transpose(1, 0, 2))
        return [jnp.einsum("bti,bsi->bts", y[:, :n], y[:, :n]) for n in (1, 2, 3)]

    assert in_fusions(compiled(lambda x: slices(x, lambda *values: values), X), "copy") == 3
    assert in_fusions(compiled(lambda x: slices(x, barriers.row_major), X), "copy") == 1


def test_features_are_minor_on_a_tpu_alone():
    def constraints(kind):
        with active(kind()):
            traced = jax.make_jaxpr(lambda x: barriers.features_minor(x))(X)  # JAX keeps the trace of a function
            return str(traced).count("layout_constraint")

    assert constraints(LikeTpu) == 1 and constraints(Layout) == 0
