"""Values that depend on how many rows the batch has are not proved; those of rows alone are, for two batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.training.row_counts import Difference, differences
from engine.training.row_dependence import trace_rows
from engine.training.row_rules import ByRow, Mixed, Same
from tests.training.row_rules_test import KEPT, ROWS

COUNTED = {
    "divided by the number of rows": lambda x: x / len(x),
    "number of rows in a constant": lambda x: x * np.array([1, len(x), 1, 1], np.float32),
    "sum of ones": lambda x: x / jnp.ones(len(x)).sum(),
    "product of ones": lambda x: x / (jnp.ones(len(x)) @ jnp.ones(len(x))),
    "last number": lambda x: x + jnp.arange(len(x))[-1],
    "largest number": lambda x: x + jnp.cumsum(jnp.ones(len(x))).max(),
    "as many times as rows": lambda x: lax.fori_loop(0, len(x), lambda i, y: 0.5 * y, x),
    "until the number of rows": lambda x: lax.while_loop(
        lambda c: c[0] < len(x), lambda c: (c[0] + 1, c[1] / 2), (0, x)
    )[1],
    "power of the number": lambda x: lax.integer_pow(x, len(x)),
    "repeated as often": lambda x: jnp.broadcast_to(x[:, None], (len(x), len(x), 3, 4)).sum(1),
    "product with as many ones": lambda x: jnp.einsum("btf,r->btf", x, jnp.ones(len(x))),
    "in a branch": lambda x: lax.cond(jnp.float32(2) > 1, lambda y: y / len(x), jnp.cos, x),
    "in a function": lambda x: jax.jit(lambda y: y / len(y))(x),
    "row by row": lambda x: lax.map(lambda row: row / len(x), x),
    "row by row with a sum": lambda x: lax.map(lambda row: jnp.broadcast_to(row.sum(), len(x)).sum(), x),
    "noise of the batch": lambda x: x + jax.random.normal(jax.random.key(0), (len(x),))[1],
}


def state(function):
    first, second = (
        jax.make_jaxpr(function)(jax.ShapeDtypeStruct((rows, 3, 4), jnp.float32)) for rows in (ROWS, 2 * ROWS)
    )
    changes = differences(first.jaxpr, second.jaxpr, (first.consts, second.consts))
    return trace_rows(first.jaxpr, [ByRow(0)], ROWS, changes)[0]


@pytest.mark.parametrize("name", COUNTED)
def test_value_that_depends_on_the_number_of_rows_is_not_proved(name):
    assert isinstance(state(COUNTED[name]), Mixed)
    first = jax.make_jaxpr(COUNTED[name])(jnp.ones((ROWS, 3, 4)))
    assert trace_rows(first.jaxpr, [ByRow(0)], ROWS) == [ByRow(0)]  # the rows are apart


@pytest.mark.parametrize("name", KEPT.keys() - {"constant", "tile", "flattened in the middle"})
def test_value_of_a_row_alone_is_proved(name):
    found = state(KEPT[name])
    assert found == ByRow(0) or (isinstance(found, Same) and 0 not in found.varies), found


def test_the_difference_is_that_of_one_operation():
    first, second = (jax.make_jaxpr(lambda x: jnp.sin(x.sum(1)) / len(x))(jnp.ones((rows, 3))) for rows in (4, 8))
    found = differences(first.jaxpr, second.jaxpr)
    by_name = {x.primitive.name: found[id(x)] for x in first.eqns if id(x) in found}
    assert by_name["div"].constants and not by_name["reduce_sum"].constants
    assert by_name["sin"] == Difference(axes=(frozenset({0}),))
