"""Random programs: what is proved about the rows of a value holds for the values themselves.

Other dimensions have the size of the batch, so that a rule that goes by sizes takes them for the rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.training.row_dependence import trace_rows
from engine.training.row_rules import ByRow, Mixed, Same

ROWS, OPERATIONS = 4, 10
MOVED = np.array([2, 0, 3, 1])
Draw = np.random.Generator


def indices(x: Any, size: int) -> jax.Array:
    return (jnp.abs(x) * 7).astype(jnp.int32) % size


def shifted(row: Any) -> Any:
    return lax.while_loop(lambda y: (y > 0.1).any(), lambda y: 0.5 * y, jnp.abs(row))


def scanned(x: Any) -> Any:
    return lax.scan(lambda c, row: (c + 1.0, jnp.tanh(row) * c), 0.0, x)[1]


def summed(x: Any, axis: int) -> Any:
    return lax.scan(lambda c, y: (c + y, c), x.sum(axis), jnp.moveaxis(x, axis, 0))[1]


def noise(row: Any) -> Any:
    return jax.random.normal(jax.random.key(indices(row.sum(), 99)), (3,))


def unary(draw: Draw, x: Any) -> Callable[..., Any]:
    """Returns a random operation on an array of the shape of `x`; it may not fit."""
    a, size, chosen = int(draw.integers(x.ndim)), int(draw.integers(1, 5)), draw.integers(0, 4, 4)
    order = tuple(int(i) for i in draw.permutation(x.ndim))
    times = tuple(int(i) for i in draw.integers(1, 3, x.ndim))
    shape = [int(draw.choice([4, 3, 2, 12, 16, 1, 6, 8, -1])) for _ in range(draw.integers(1, 4))]
    window = [1 + (i == a) for i in range(x.ndim)]
    operations: list[Callable[..., Any]] = [
        jnp.sin,
        noise,
        scanned,
        shifted,
        jax.vmap(noise),
        jax.vmap(shifted, a),
        lambda x: x.sum(a),
        lambda x: x - x.max(a, keepdims=True),
        lambda x: jnp.cumsum(x, a),
        lambda x: jnp.sort(x, a),
        lambda x: jnp.argsort(x, a).astype(jnp.float32),
        lambda x: jnp.flip(x, a),
        lambda x: jax.nn.softmax(x, a),
        lambda x: lax.top_k(x, size, axis=a)[0],
        lambda x: x.transpose(order),
        lambda x: x.reshape(shape),
        lambda x: x.reshape(shape),
        lambda x: x.reshape(shape),
        lambda x: lax.reshape(x, x.reshape(shape).shape, order),
        lambda x: lax.map(lambda row: jnp.cumsum(row) * row.sum(), x),
        lambda x: lax.fori_loop(0, 3, lambda i, y: 0.5 * y + x, x),
        lambda x: summed(x, a),
        lambda x: jnp.expand_dims(x, a),
        lambda x: jnp.tile(x, times),
        lambda x: jnp.repeat(x, 2, a),
        lambda x: jnp.roll(x, 1, a),
        lambda x: jnp.take(x, size, a),
        lambda x: jnp.take(x, chosen, a),
        lambda x: jnp.abs(jnp.fft.fftn(x, axes=range(-min(size, x.ndim), 0))),
        lambda x: lax.slice_in_dim(x, 1, None, axis=a),
        lambda x: jnp.stack(jnp.unstack(x, axis=a)),
        lambda x: jnp.concatenate(jnp.split(x, 2, a)[::-1], a),
        lambda x: (jnp.moveaxis(x, a, -1) * jnp.arange(x.shape[a])).astype(jnp.float32),
        lambda x: lax.reduce(x, 1.0, lambda p, q: p * jnp.cos(q), (a,)),
        lambda x: lax.reduce_window(x, 0.0, lambda p, q: p + q, window, [1] * x.ndim, "SAME"),
        lambda x: lax.associative_scan(jnp.add, x, axis=a),
        lambda x: jnp.linalg.solve(x @ x.mT + 9 * jnp.eye(x.shape[-2]), x),
        lambda x: jnp.linalg.cholesky(x @ x.mT + 9 * jnp.eye(x.shape[-2])),
        lambda x: jnp.zeros((4, *x.shape[1:])).at[indices(x.sum(range(1, x.ndim)), 4)].add(x),
        lambda x: x.at[(slice(None),) * a + (1,)].multiply(2.0),
        lambda x: lax.dynamic_update_slice(x, x[-1:] * 2, (1,) + (0,) * (x.ndim - 1)),
        lambda x: jnp.pad(x, [(i == a, 0) for i in range(x.ndim)]),
        lambda x: lax.conv_general_dilated(x, KERNEL, (1,), "SAME", dimension_numbers=CHANNELS_LAST),
        lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    ]
    return operations[draw.integers(len(operations))]


def binary(draw: Draw, x: Any, y: Any) -> Callable[..., Any]:
    """Returns a random operation on two arrays of the shapes of `x` and `y`; it may not fit."""
    a, b, out = (int(draw.integers(n)) for n in (x.ndim, y.ndim, 2))
    product = str(draw.choice(PRODUCTS))
    operations: list[Callable[..., Any]] = [
        jnp.add,
        jnp.multiply,
        jnp.matmul,
        jax.vmap(jnp.outer, (a, b), out),
        lambda x, y: jnp.where(x > y, x, y),
        lambda x, y: jnp.einsum(product, x, y),
        lambda x, y: jnp.einsum(product, x, y),
        lambda x, y: jnp.concatenate([x, y], a),
        lambda x, y: jnp.take_along_axis(x, indices(y, x.shape[a]), a),
        lambda x, y: jax.vmap(lambda row, i: row[i])(x, indices(y, x.shape[-1])),
        lambda x, y: x[indices(y, x.shape[0])],
        lambda x, y: lax.sort((x, y), dimension=a, num_keys=1)[1],
        lambda x, y: jax.vmap(lambda row, z: row.at[indices(z, 4)].add(z))(x, y),
    ]
    return operations[draw.integers(len(operations))]


KERNEL, CHANNELS_LAST = jnp.arange(32.0).reshape(2, 4, 4), ("NTC", "TIO", "NTC")
PRODUCTS = [
    "ij,ij->i",
    "ij,kj->ik",
    "ij,ik->ijk",
    "ij,jk->ki",
    "ijk,ik->ij",
    "ijk,ijl->ikl",
    "ijk,ljk->il",
    "ij,ik->jk",
]


def random_program(seed: int, inputs: Sequence[Any]) -> Callable[..., list[Any]]:
    """Returns a function that applies random operations, and returns all of its values."""
    draw = np.random.default_rng(seed)
    steps: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
    shapes: list[Any] = [jax.eval_shape(lambda x=x: x) for x in inputs]
    while len(steps) < OPERATIONS:
        chosen = [len(shapes) - 1 - min(int(draw.geometric(0.3)) - 1, len(shapes) - 1) for _ in range(2)]
        picked = tuple(chosen[: 1 + (draw.random() < 0.4)])
        operands = [shapes[i] for i in picked]
        if not all(x.ndim for x in operands):
            continue
        try:
            function = unary(draw, *operands) if len(operands) == 1 else binary(draw, *operands)
            shape = jax.eval_shape(function, *operands)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):  # the shapes do not fit
            continue
        if shape.size <= 4096 and shape.dtype == jnp.float32:
            steps.append((function, picked))
            shapes.append(shape)

    def program(*inputs: jax.Array) -> list[Any]:
        values: list[Any] = list(inputs)
        for function, picked in steps:
            values.append(function(*(values[i] for i in picked)))
        return values

    return program


def rows_first(x: np.ndarray, rows: ByRow) -> np.ndarray:
    """Returns `[rows, ...]` of a value that has the rows along another dimension."""
    x = np.moveaxis(x, rows.axis, 0)
    return np.moveaxis(x.reshape(-1, ROWS, rows.inner, *x.shape[1:]), 1, 0)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    largest = np.abs(a[np.isfinite(a)]).max(initial=1)
    return np.allclose(a, b, 1e-3, 1e-4 * largest, equal_nan=True)


def check_program(seed: int) -> int:
    """Compares the proofs of a program with its values; returns how many values have rows that are proved."""
    draw = np.random.default_rng([seed, 1])
    x, y, w = (draw.normal(size=shape).astype(np.float32) for shape in ((ROWS, 3, 4), (ROWS, 4), (4, 4)))
    program = random_program(seed, [x, y, w])
    closed, compiled = jax.make_jaxpr(program)(x, y, w), jax.jit(program)
    states = trace_rows(closed.jaxpr, [ByRow(0), ByRow(0), Same(frozenset({0, 1}))], ROWS)
    kept = int(draw.integers(ROWS))
    other = [draw.normal(size=v.shape).astype(np.float32) for v in (x, y)]
    for new, old in zip(other, (x, y), strict=True):
        new[kept] = old[kept]
    runs = [jax.device_get(compiled(*inputs, w)) for inputs in ((x, y), (x[MOVED], y[MOVED]), other)]
    for number, (state, *values) in enumerate(zip(states, *runs, strict=True)):
        assert isinstance(state, ByRow | Same | Mixed)
        where = f"program {seed}, value {number} is not {state}: {closed}"
        if isinstance(state, ByRow):
            before, moved, replaced = (rows_first(x, state) for x in values)
            assert close(before[MOVED], moved) and close(before[kept], replaced[kept]), where
        if isinstance(state, Same):
            assert close(values[0], values[1]) and close(values[0], values[2]), where
            for axis in set(range(values[0].ndim)) - state.varies:
                assert close(values[0], np.broadcast_to(np.take(values[0], [0], axis), values[0].shape)), where
    return sum(isinstance(state, ByRow) for state in states[3:])


@pytest.mark.slow
def test_proofs_of_random_programs_hold_for_their_values():
    assert sum(map(check_program, range(8))) > 8
