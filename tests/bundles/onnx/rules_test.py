"""Products that are written as one MatMul."""

import jax
import jax.numpy as jnp
import pytest

from engine.bundles.onnx.rules import is_of_rows

X, KERNEL = jnp.ones((2, 3, 4)), jnp.ones((4, 5))

PRODUCTS = {
    "rows of two dimensions": (lambda: X @ KERNEL, True),
    "rows of one dimension": (lambda: X[0] @ KERNEL, False),
    "a matrix from the right": (lambda: jnp.einsum("btd,fd->btf", X, KERNEL.T), False),
    "another dimension": (lambda: jnp.einsum("btd,tf->bdf", X, jnp.ones((3, 5))), False),
    "a batch": (lambda: jnp.einsum("btd,bdf->btf", X, jnp.ones((2, 4, 5))), False),
    "sums of another type": (
        lambda: jnp.matmul(X.astype(jnp.int8), KERNEL.astype(jnp.int8), preferred_element_type=jnp.int32), False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_rows_with_a_matrix_are_found(name):
    function, expected = PRODUCTS[name]
    equations = jax.make_jaxpr(function)().jaxpr.eqns
    products = [equation for equation in equations if equation.primitive.name == "dot_general"]
    products += [inner for outer in equations for jaxpr in [outer.params.get("jaxpr")] if jaxpr for inner in jaxpr.eqns]
    [found] = [equation for equation in products if equation.primitive.name == "dot_general"]
    assert is_of_rows(found) == expected
