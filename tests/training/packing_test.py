"""Packed arrays: the same values, gradients and steps as without, in few vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.training.packing import LARGEST, MOST, Packing, cast_together, norm_and_arrays
from engine.training.step import make_steps

ARRAYS = {
    **{f"small/{n}": jnp.arange(6.0).reshape(2, 3) + n for n in range(MOST + 2)},
    "large": jnp.ones(LARGEST + 1),
    "scalar": jnp.float32(3),
}


def test_arrays_of_one_kind_are_in_vectors_of_limited_length():
    tree = {"params": ARRAYS, "count": jnp.arange(4), "moments": [jnp.ones(3), jnp.zeros(2)]}
    packing = Packing.of(tree)
    vectors, rest = packing.pack(tree)
    assert sorted(x.shape for x in vectors) == [(5,), (2 * 6,), (MOST * 6,)]
    assert sorted(x.size for x in rest) == [1, 4, LARGEST + 1]
    jax.tree.map(np.testing.assert_array_equal, packing.unpack((vectors, rest)), tree)


def test_the_norm_is_that_of_all_arrays():
    norm, arrays = jax.jit(norm_and_arrays)(ARRAYS)
    np.testing.assert_allclose(norm, optax.tree.norm(ARRAYS), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, arrays, ARRAYS)


def test_parameters_that_are_cast_together_have_the_values_and_the_gradients_of_each():
    def loss(cast, params):
        return sum((x.astype(jnp.float32) ** 3).sum() for x in cast(params).values())

    def one_by_one(params):
        return {path: x.astype(jnp.bfloat16) for path, x in params.items()}

    together = functools.partial(cast_together, dtype=jnp.bfloat16)
    found, wanted = (jax.jit(jax.grad(functools.partial(loss, cast)))(ARRAYS) for cast in (together, one_by_one))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert {x.dtype for x in together(ARRAYS).values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("packs", [False, True])
def test_steps_of_a_loop_equal_single_steps(packs):
    def step(state, batch, skip, numbers):
        new = jax.tree.map(lambda x: jnp.where(skip, x, x * numbers[0] + batch["x"].sum()), state)
        return new, jnp.stack([state["a"].sum(), batch["x"].sum()])[None]

    state = {"a": jnp.ones((2, 3)), "b": jnp.arange(4.0), "scale": jnp.float32(1)}
    batches = tuple({"x": jnp.full(3, float(n))} for n in range(3))
    skip, numbers = jnp.array([False, True, False]), jnp.array([0.5])
    found, metrics = jax.jit(make_steps(step, False, packs))(state, batches, skip, numbers)
    wanted, sums = state, []
    for batch, skipped in zip(batches, skip, strict=True):
        wanted, values = step(wanted, batch, skipped, numbers)
        sums.append(values)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)
    np.testing.assert_allclose(metrics, np.stack(sums), rtol=1e-6)
