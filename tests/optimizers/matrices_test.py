"""The matrices of parameters, and the shares of the devices in them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from engine.config.schema import MeshSpec
from engine.optimizers.matrices import MatrixForm, forms, in_stacks, is_masked, partitioned, two_dimensions
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import make_mesh
from tests.optimizers.cases import MATRICES, SHAPES, arrays, matrices


@pytest.mark.parametrize(("path", "size"), [("blocks/query", (4, 16, 16)), ("experts/up", (4, 16, 48))])
def test_parameter_is_split_into_its_matrices_and_joined_again(path, size):
    x = arrays(0)[path]
    form = MatrixForm.of(jnp.asarray(x), MATRICES[path])
    assert form.split(jnp.asarray(x)).shape == size
    np.testing.assert_array_equal(form.join(form.split(jnp.asarray(x))), x)


def test_rows_are_the_dimensions_that_the_product_sums():
    x = np.arange(24).reshape(2, 3, 4)
    form = MatrixForm.of(jnp.asarray(x), Numbers(reduction_axis=-1, output_axis=0))
    assert (form.size, form.leading) == ((4, 2), (3,))
    np.testing.assert_array_equal(form.split(jnp.asarray(x)), x.transpose(1, 2, 0))


def test_matrices_of_an_unknown_model_have_two_dimensions():
    found = forms(two_dimensions, {"a": jnp.ones((2, 3)), "b": jnp.ones(3), "c": optax.MaskedNode()})
    assert (found["a"].size, found["b"], is_masked(found["c"])) == ((2, 3), None, True)


@pytest.mark.parametrize("mesh", [None, MeshSpec(data=2, fsdp=2, tensor=2)], ids=str)
def test_each_matrix_of_a_stack_is_computed_alone(mesh):
    """Three stacks of 2, 5 and 3 matrices, of which two have the same size, on 8 devices."""
    rng = np.random.default_rng(0)
    left = [rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4), (5, 2, 4), (3, 3, 4))]
    right = [rng.normal(size=(len(x), 4)).astype(np.float32) for x in left]

    def function(left, right):
        return {"product": (left @ right[..., None])[..., 0], "sum": right.sum(-1)}

    layout = Layout(mesh=mesh and make_mesh(mesh, jax.devices()))
    found = jax.jit(with_layout(layout, lambda *x: in_stacks(function, *x)))(left, right)
    for result, a, b in zip(found, left, right, strict=True):
        expected = function(a, b)
        np.testing.assert_allclose(result["product"], expected["product"], atol=1e-6)
        np.testing.assert_allclose(result["sum"], expected["sum"], atol=1e-6)


def test_other_parameters_have_another_transformation():
    tx = partitioned(optax.scale(2.0), optax.scale(3.0), matrices)
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    updates: Any
    updates, _ = tx.update(params, tx.init(params), params)
    assert {path: float(x.ravel()[0]) for path, x in updates.items()} == {
        path: 2.0 if path in MATRICES else 3.0 for path in SHAPES
    }


def test_parameters_of_another_group_stay_masked():
    inner = partitioned(optax.trace(0.9), optax.scale(3.0), matrices)
    groups = {path: "rest" if path in ("one", "scale") else "mine" for path in SHAPES}
    tx = optax.partition({"mine": inner, "rest": optax.scale(5.0)}, groups)
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    updates: Any
    updates, state = tx.update(params, tx.init(params), params)
    assert {path: float(updates[path].ravel()[0]) for path in ("one", "scale", "embedding", "experts/up")} == {
        "one": 5.0, "scale": 5.0, "embedding": 3.0, "experts/up": 1.0
    }  # fmt: skip
    marked = optax.tree.map_params(tx, lambda _: "matrix", state, transform_non_params=lambda _: "none")
    assert jax.tree.leaves(marked) == ["matrix"] * 3
