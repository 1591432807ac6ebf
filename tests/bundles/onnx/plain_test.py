"""Functions in plain operations: they compute the same, in fewer kinds of operations, with symbolic sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from engine.bundles.onnx.plain import Plain
from engine.training.jaxprs import inner_jaxprs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 8)).astype(np.float32)
AT = RNG.integers(-2, 9, (3, 5)).astype(np.int32)


@jax.custom_vjp
def _tripled(x):
    return 3 * x


_tripled.defvjp(lambda x: (3 * x, None), lambda _, d: (d,))


def _hinted(x, at):
    @jax.jit
    def inner(y):
        return lax.optimization_barrier(jax.checkpoint(jnp.sin)(_tripled(jax.nn.relu(y))))

    return inner(x)


def _chosen(x, at):
    here = lax.platform_dependent(x, cuda=jnp.cos, default=jnp.sin)
    return lax.cond(at.sum() > 0, jnp.tan, jnp.exp, here)


def _unrolled(x, at):
    carry, seen = lax.scan(lambda a, y: (jnp.tanh(a + y), a), jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1), unroll=True)
    return carry + seen.sum(0)


def _reversed(x, at):
    steps = x.swapaxes(0, 1)
    carry, seen = lax.scan(lambda a, y: (a * 0.5 + y, a), jnp.zeros((x.shape[0], 8)), steps, reverse=True)
    return carry + (seen * jnp.arange(6.0)[:, None, None]).sum(0)


def _unrolled_backwards(x, at):
    _, seen = lax.scan(lambda a, y: (a + y, a), jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1), reverse=True, unroll=6)
    return seen.swapaxes(0, 1)


def _looped(x, at):
    def one(row):  # each row has its own number of rounds
        return lax.while_loop(lambda y: jnp.abs(y[0, 0]) > 0.01, lambda y: y * 0.7, row)

    return jax.vmap(one)(x)


def _searched(x, at):
    x = jnp.where(x > 0.8, jnp.nan, x)  # NaN comes after all numbers
    return jax.vmap(lambda row: jnp.searchsorted(jnp.sort(row[:, 0]), row[:, 1]))(x)


FUNCTIONS = {
    "calls and hints": _hinted,
    "branches": _chosen,
    "an unrolled scan": _unrolled,
    "a scan backwards": _reversed,
    "an unrolled scan backwards": _unrolled_backwards,
    "a loop for each row": _looped,
    "a search": _searched,
    "bools": lambda x, at: jnp.where(x[..., 0] > 0, x[..., 1] > 0, x[..., 2] > 0),
    "a remainder": lambda x, at: at % 4 + lax.rem(at, 3),
    "maxima of windows": lambda x, at: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3), (1, 2, 1), "SAME"),
    "sums of windows": lambda x, at: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3), (1, 2, 2), "SAME"),
    "a slice": lambda x, at: x[:, 2:4, ..., 1] * x[..., -1:, 3],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plain_function_computes_the_same(name):
    function = FUNCTIONS[name]
    plain = Plain(lambda *args: [function(*args)], *map(_spec, (X, AT)))
    [found] = jax.jit(plain)(X, AT)
    expected = function(X, AT)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_plain_functions_take_any_number_of_rows():
    (rows,) = export.symbolic_shape("rows")
    specs = [jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for x in (X, AT)]
    plain = Plain(lambda *args: [function(*args) for function in FUNCTIONS.values()], *specs)
    program = export.export(jax.jit(plain))(*specs)
    for count in (1, 3):
        for function, found in zip(FUNCTIONS.values(), program.call(X[:count], AT[:count]), strict=True):
            np.testing.assert_allclose(found, function(X[:count], AT[:count]), rtol=1e-6, atol=1e-6)


def test_only_plain_operations_are_left():
    plain = Plain(lambda *args: [FUNCTIONS[name](*args) for name in FUNCTIONS], *map(_spec, (X, AT)))
    jaxpr = jax.make_jaxpr(plain)(X, AT).jaxpr
    left = set(_names(jaxpr))
    rewritten = {"platform_index", "optimization_barrier", "custom_vjp_call", "custom_jvp_call", "remat2", "le_to"}
    assert not left & (rewritten | {"rem", "reduce_window_max", "reduce_window_sum", "call_hi_primitive"})
    assert {"while", "scan", "cond"} <= left
    choices = [equation for equation in jaxpr.eqns if equation.primitive.name == "select_n"]
    assert choices and not any(equation.outvars[0].aval.dtype == bool for equation in choices)  # pyright: ignore[reportAttributeAccessIssue]


def test_constants_are_computed_only_if_they_are_small():
    plain = Plain(lambda x: [x + jnp.sin(jnp.arange(8.0)), x[:, :1] + jnp.cos(jnp.arange(9000.0)).sum()], _spec(X[0]))
    left = _names(jax.make_jaxpr(plain)(X[0]).jaxpr)
    assert left.count("sin") == 0 and left.count("cos") == 1


def test_equations_are_those_of_the_author():
    plain = Plain(lambda x: [_hinted(x, None)], _spec(X))
    names = {equation.primitive.name for equation in plain.equations()}
    assert {"sin", "max", "mul", "optimization_barrier"} <= names and plain.outputs[0].shape == X.shape


def _spec(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _names(jaxpr):
    found = []
    for equation in jaxpr.eqns:
        found.append(equation.primitive.name)
        for inner in inner_jaxprs(equation):
            found += _names(inner)
    return found
