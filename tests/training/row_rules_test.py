"""Operations that keep the rows of a batch apart are proved; those that mix rows, or depend on their order, are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from engine.training.row_dependence import trace_rows
from engine.training.row_rules import ByRow, Mixed, Same, anything

ROWS = 4
X = np.random.default_rng(0).normal(size=(ROWS, 3, 4)).astype(np.float32)
TABLE = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(2, 4, 5)).astype(np.float32)


def whole(x):
    """Returns an integer `[rows]` below 4."""
    return (jnp.abs(x).sum((1, 2)) * 10).astype(jnp.int32) % 4


def pooled(x):
    return nnx.max_pool(x, (2,), strides=(1,))


def scanned(x):
    return lax.scan(lambda c, y: (c + y, jnp.tanh(c)), x[:, 0], x.swapaxes(0, 1))[1].swapaxes(0, 1)


def referenced(x):
    total = jax.new_ref(jnp.float32(0))
    total[...] = x.sum()
    return x * total[...]


def referenced_in_a_loop(x):
    total = jax.new_ref(jnp.float32(0))

    def body(i, y):
        total[...] = total[...] + x[i, 0, 0]
        return y

    return lax.fori_loop(0, 3, body, x) + total[...]


def shared_counter(x):
    def loop(row):
        def body(carry):
            number, _, y = carry
            return number + 1, lax.psum(number, "rows"), 0.5 * y

        return lax.while_loop(lambda carry: (carry[2] > 0.1).any(), body, (0, 0, 9 / (0.01 + row**2)))[1] * row

    return jax.vmap(loop, axis_name="rows")(x)


KEPT = {
    "elementwise": lambda x: jnp.where(x > 0, jnp.sin(x), x**2 + 1.0),
    "broadcast parameter": lambda x: x @ TABLE + TABLE[0],
    "reduction": lambda x: x.sum(1).max(-1),
    "softmax": lambda x: jax.nn.softmax(x, axis=1),
    "flattened and back": lambda x: (x.reshape(-1, 4) @ TABLE).reshape(x.shape),
    "flattened in the middle": lambda x: x.transpose(1, 0, 2).reshape(3, -1).reshape(3, ROWS, 4).swapaxes(0, 1),
    "product of rows": lambda x: jnp.einsum("btf,bsf->bts", x, x),
    "product from the right": lambda x: jnp.einsum("fg,btf->bgt", TABLE, x),
    "convolution": lambda x: lax.conv_general_dilated(
        x, jnp.asarray(KERNEL), (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC")
    ),
    "pooling": pooled,
    "cumulative sum in a row": lambda x: jnp.cumsum(x, 1),
    "sort in a row": lambda x: jnp.sort(x, -1),
    "top k": lambda x: lax.top_k(x, 2)[0],
    "embedding": lambda x: jnp.asarray(TABLE)[whole(x)],
    "take along an axis": lambda x: jnp.take_along_axis(x, whole(x)[:, None, None] % 3, 1),
    "gather in each row": lambda x: jax.vmap(lambda row, i: row[i % 3])(x, whole(x)),
    "scatter in each row": lambda x: jax.vmap(lambda row, i: jnp.zeros(4).at[i].add(row.sum()))(x, whole(x)),
    "same columns of all rows": lambda x: x[:, jnp.array([2, 0])],
    "set a column": lambda x: x.at[:, 1].set(0.0),
    "slice and pad": lambda x: jnp.pad(x[:, 1:], ((0, 0), (1, 1), (0, 0))),
    "concatenation": lambda x: jnp.concatenate([x, jnp.zeros_like(x)], 1),
    "scan over time": lambda x: lax.scan(lambda c, y: (c + y, jnp.tanh(c)), x[:, 0], x.swapaxes(0, 1))[1].swapaxes(
        0, 1
    ),
    "loop of fixed length": lambda x: lax.fori_loop(0, 3, lambda i, y: y * 0.5 + x, x),
    "branch by a constant": lambda x: lax.cond(jnp.float32(2) > 1, jnp.sin, jnp.cos, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x @ TABLE)),
    "jit in jit": lambda x: jax.jit(jnp.tanh)(x) * jax.nn.gelu(x),
    "cholesky": lambda x: jnp.linalg.cholesky(jnp.einsum("btf,bsf->bts", x, x) + 3 * jnp.eye(3)),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x, axis=-1)),
    "stack and unstack": lambda x: jnp.stack(list(jnp.unstack(x, axis=1)), 1),
    "recurrent layer": lambda x: nnx.RNN(nnx.GRUCell(4, 4, rngs=nnx.Rngs(0)))(x),
    "gradient of a row": jax.vmap(jax.grad(lambda row: jnp.tanh(row).sum() ** 2)),
    "rows one by one": lambda x: lax.map(lambda row: jnp.cumsum(row) * row.sum(), x),
    "loop in each row": jax.vmap(lambda r: lax.while_loop(lambda y: (y > 0.1).any(), lambda y: 0.5 * y, jnp.abs(r))),
    "solve": lambda x: jnp.linalg.solve(jnp.einsum("btf,bsf->bts", x, x) + 3 * jnp.eye(3), x),
    "tile": lambda x: jnp.tile(x, (2, 2, 1)).reshape(2, ROWS, 6, 4).sum(0),
    "constant": lambda x: jnp.ones((ROWS, 2)),
    "barrier": lambda x: lax.optimization_barrier((x, jnp.ones(3)))[0],
}
MIXED = {
    "mean over rows": lambda x: x - x.mean(0),
    "largest of all": lambda x: x / jnp.abs(x).max(),
    "batch statistics": lambda x: (x - x.mean((0, 1))) / x.std((0, 1)),
    "all pairs": lambda x: jnp.einsum("bf,cf->bc", x[:, 0], x[:, 0]),
    "contrastive": lambda x: jax.nn.log_softmax(x[:, 0] @ x[:, 1].T, axis=-1),
    "reversed": lambda x: x[::-1],
    "rolled": lambda x: jnp.roll(x, 1, axis=0),
    "shuffled": lambda x: x[jnp.array([2, 0, 3, 1])],
    "first row": lambda x: x - x[0],
    "half of the rows": lambda x: jnp.concatenate([x[: ROWS // 2], x[: ROWS // 2]]),
    "pairs of rows": lambda x: jnp.repeat(x.reshape(ROWS // 2, 2, 3, 4).sum(1), 2, axis=0),
    "sorted rows": lambda x: jnp.sort(x, 0),
    "running sum": lambda x: jnp.cumsum(x, 0),
    "ranked": lambda x: jnp.argsort(jnp.argsort(x, 0), 0).astype(jnp.float32),
    "position of the row": lambda x: x * jnp.arange(ROWS)[:, None, None],
    "weights of the rows": lambda x: x * jnp.asarray(TABLE[:, 0])[:, None, None],
    "row that another names": lambda x: x[whole(x)],
    "scatter across rows": lambda x: jnp.zeros((ROWS, 3, 4)).at[whole(x)].add(x),
    "carried from row to row": lambda x: lax.scan(lambda c, y: (c + y, c + y), jnp.zeros((3, 4)), x)[1],
    "loop until all rows are done": lambda x: lax.while_loop(lambda y: (y > 0.1).any(), lambda y: y * 0.5, jnp.abs(x)),
    "branch by a row": lambda x: lax.cond(jnp.abs(x).max() > 5, jnp.sin, jnp.cos, x),
    "window over rows": lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 1, 1), (1, 1, 1), "SAME"),
    "transposed rows": lambda x: x[:, :, 0] if ROWS == 3 else x[:, 0].T @ x[:, 0] + x[:, 0],
    "reduction by a function": lambda x: x * lax.reduce(x, 0.0, lambda a, b: a + jnp.sin(b), (0, 1, 2)),
    "window of a function": lambda x: lax.reduce_window(
        x, 0.0, lambda a, b: a + jnp.sin(b), (2, 1, 1), (1, 1, 1), "SAME"
    ),
    "top k of the rows": lambda x: lax.top_k(x, ROWS, axis=0)[0],
    "fft of the rows": lambda x: jnp.abs(jnp.fft.fft2(x[:, 0])),
    "reshape in another order": lambda x: lax.reshape(x[:, 0], (ROWS, 4), (1, 0)),
    "written to a reference": referenced,
    "written to a reference in a loop": referenced_in_a_loop,
    "rows one by one with their number": lambda x: lax.map(lambda y: y[0] * y[1], (x, jnp.arange(ROWS))),
    "rows one by one with those before": lambda x: lax.scan(lambda c, row: (c + 1, row * c), 0, x)[1],
    "rows one by one with all": lambda x: lax.map(lambda row: row * x.sum(), x),
    "loops that share a counter": shared_counter,
    "convolution of rows": lambda x: jnp.convolve(x[:, 0, 0], jnp.ones(3), "same"),
}


def state(function):
    closed = jax.make_jaxpr(function)(jnp.asarray(X))
    return trace_rows(closed.jaxpr, [ByRow(0)], ROWS)[0]


def is_kept(found) -> bool:
    return found == ByRow(0) or (isinstance(found, Same) and 0 not in found.varies)


def changed(function) -> bool:
    """Whether a row of the result changes if other rows do, or if the rows change places."""
    before = np.asarray(function(jnp.asarray(X)))
    copied = X.copy()
    copied[1:] = X[0] * 10
    moved = np.asarray(function(jnp.asarray(X[[2, 0, 3, 1]])))
    alone = np.asarray(function(jnp.asarray(copied)))
    return not (np.allclose(alone[0], before[0], 1e-4, 1e-5) and np.allclose(moved, before[[2, 0, 3, 1]], 1e-4, 1e-5))


@pytest.mark.parametrize("name", KEPT)
def test_operation_that_keeps_rows_apart_is_proved(name):
    assert is_kept(state(KEPT[name])), state(KEPT[name])
    assert not changed(KEPT[name])


@pytest.mark.parametrize("name", MIXED)
def test_operation_that_mixes_rows_is_not_proved(name):
    assert changed(MIXED[name])
    assert isinstance(state(MIXED[name]), Mixed)


def test_keys_of_the_rows_give_numbers_by_row():
    def noise(keys):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 3), (5,)))(keys)

    keys = jax.random.split(jax.random.key(0), ROWS)
    assert trace_rows(jax.make_jaxpr(noise)(keys).jaxpr, [ByRow(0)], ROWS) == [ByRow(0)]
    shared = jax.make_jaxpr(lambda keys: jax.random.normal(keys[0], (ROWS, 5)))(keys)
    assert isinstance(trace_rows(shared.jaxpr, [ByRow(0)], ROWS)[0], Mixed)


def test_mixed_value_names_the_line_that_mixes_rows():
    found = state(MIXED["all pairs"])
    assert isinstance(found, Mixed)
    assert found.place.startswith("dot_general (") and "row_rules_test.py:" in found.place
    found = state(lambda x: jnp.roll(x, 1, axis=0))  # the operation is one of a function of jax
    assert isinstance(found, Mixed)
    assert "row_rules_test.py:" in found.place


def test_rows_of_another_length_are_not_taken_for_the_batch():
    closed = jax.make_jaxpr(lambda x, table: x @ table.T)(jnp.ones((ROWS, ROWS)), jnp.ones((ROWS, ROWS)))
    assert trace_rows(closed.jaxpr, [ByRow(0), anything((ROWS, ROWS))], ROWS) == [ByRow(0)]
    assert isinstance(trace_rows(closed.jaxpr, [anything((ROWS, ROWS)), ByRow(0)], ROWS)[0], ByRow)
    assert trace_rows(closed.jaxpr, [anything((ROWS, ROWS)), ByRow(0)], ROWS) == [ByRow(1)]
