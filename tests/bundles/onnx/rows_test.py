"""Gathers and scatters of rows: the results of JAX in every mode, with and without a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from engine.bundles.onnx import rows
from engine.bundles.onnx.plain import Plain

RNG = np.random.default_rng(1)
X = RNG.normal(size=(3, 6, 4)).astype(np.float32)
AT = RNG.integers(-3, 9, (3, 5)).astype(np.int32)  # some outside of 0 to 5
VALUES = RNG.normal(size=(3, 5, 4)).astype(np.float32)


def _of_rows(function):
    return lambda x, at, y: jax.vmap(function)(x, at, y)


CASES = {
    "add, dropped": _of_rows(lambda x, i, y: x.at[i].add(y, mode="drop")),
    "add, clipped": _of_rows(lambda x, i, y: x.at[i].add(y, mode="clip")),
    "max, dropped": _of_rows(lambda x, i, y: x.at[i].max(y, mode="drop")),
    "min": _of_rows(lambda x, i, y: x.at[i % 6].min(y, mode="promise_in_bounds")),
    "multiply": _of_rows(lambda x, i, y: x.at[i].multiply(y, mode="drop")),
    "add at pairs": _of_rows(lambda x, i, y: x.at[i, (i + 1) % 4].add(y[:, 0], mode="drop")),
    "set at one place": lambda x, at, y: x.at[:, 2].set(y[:, 0]),
    "max without a batch": lambda x, at, y: jnp.zeros((9, 4)).at[at % 6].max(y),
    "take, filled": _of_rows(lambda x, i, y: x.at[i].get(mode="fill")),
    "take, clipped": _of_rows(lambda x, i, y: x.at[i].get(mode="clip")),
    "take integers, filled": _of_rows(lambda x, i, y: (x[:, 0] * 9).astype(jnp.int32).at[i].get(mode="fill")),
    "take bools, filled": _of_rows(lambda x, i, y: (x[:, 0] > 0).at[i].get(mode="fill", fill_value=False)),
    "take along an axis": lambda x, at, y: jnp.take_along_axis(x, at[..., None] % 6, 1),
    "take pairs": _of_rows(lambda x, i, y: x[i % 6, i % 4]),
    "take columns": lambda x, at, y: x[..., jnp.array([3, 0, 0])],
    "take from a table": lambda x, at, y: jnp.asarray(VALUES[0])[at % 5],
}


@pytest.mark.parametrize("name", CASES)
def test_rows_equal_the_operations_of_jax(name):
    args = (X, AT, VALUES)
    plain = Plain(lambda *args: [CASES[name](*args)], *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args))
    [found] = jax.jit(plain)(*args)
    expected = CASES[name](*map(jnp.asarray, args))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gathers_and_scatters_have_neither_a_batch_nor_modes(name):
    (batch,) = export.symbolic_shape("batch")
    args = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (X, AT, VALUES)]
    jaxpr = jax.make_jaxpr(Plain(lambda *args: [CASES[name](*args)], *args))(*args).jaxpr
    found = [equation for equation in jaxpr.eqns if equation.primitive.name.startswith(("gather", "scatter"))]
    assert found
    for equation in found:
        assert not equation.params["dimension_numbers"].operand_batching_dims
        wanted = 1 if equation.primitive.name.startswith("scatter") and equation.primitive.name != "scatter" else 2
        assert len(rows.shape_of(equation.invars[0])) == wanted and "PROMISE" in str(equation.params["mode"])
