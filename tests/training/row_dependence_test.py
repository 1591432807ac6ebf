"""The walk over a traced program: nested functions, loops, and layers that are trusted by their name."""

import jax
import jax.numpy as jnp
from jax import lax

from engine.layers.reference import convoy_keeps_rows
from engine.training.row_dependence import trace_rows
from engine.training.row_rules import ByRow, Mixed, Same

ROWS = 4


def states(function, *inputs):
    arguments = [jnp.ones((ROWS, 3)) for _ in inputs]
    return trace_rows(jax.make_jaxpr(function)(*arguments).jaxpr, inputs, ROWS)


def test_results_are_judged_one_by_one():
    kept, mixed, same = states(lambda x: (x + 1, x - x.mean(0), jnp.zeros(3)), ByRow(0))
    assert (kept, same) == (ByRow(0), Same())
    assert isinstance(mixed, Mixed)


def test_a_function_with_its_own_gradient_is_judged_by_its_result():
    @jax.custom_vjp
    def centred(x):
        return x - x.mean(0)

    centred.defvjp(lambda x: (x - x.mean(0), None), lambda _, g: (g,))
    assert isinstance(states(centred, ByRow(0))[0], Mixed)


def test_rows_that_meet_in_a_later_iteration_are_found():
    def body(carry, _):
        kept, other = carry
        return (kept + other, other.sum(0) * jnp.ones((ROWS, 3))), None

    def function(x):
        return lax.scan(body, (x, jnp.zeros((ROWS, 3)) + x), None, length=3)[0][0]

    assert isinstance(states(function, ByRow(0))[0], Mixed)


def test_the_place_is_that_of_the_first_operation_that_mixes_rows():
    [found] = states(lambda x: jnp.tanh(x - x.mean(0)) * 2, ByRow(0))
    assert isinstance(found, Mixed) and found.place.startswith("reduce_sum (")


def test_a_layer_is_trusted_by_the_name_of_its_reference():
    assert states(lambda x: convoy_keeps_rows(lambda y: y - y.mean(0), x), ByRow(0)) == [ByRow(0)]
    [found] = states(lambda x: convoy_keeps_rows(lambda y: y, x - x.mean(0)), ByRow(0))
    assert isinstance(found, Mixed)
