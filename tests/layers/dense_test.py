"""Dense: the same numbers in every shape and on every mesh; the names of its dimensions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.config.schema import MeshSpec
from engine.layers import Dense
from engine.layers.dense import matmul, merges_positions
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

X = jax.random.normal(jax.random.key(0), (4, 8, 16))
KERNEL = jax.random.normal(jax.random.key(1), (16, 24))


def gradient(mesh):
    with active(Layout(mesh=mesh)):
        f = jax.jit(jax.grad(lambda x, w: (matmul(x, w) ** 2).sum(), argnums=(0, 1)))
        return f(X, KERNEL), f.lower(X, KERNEL).as_text()


def test_the_product_is_that_of_the_last_dimension():
    np.testing.assert_allclose(matmul(X, KERNEL), jnp.einsum("btd,df->btf", X, KERNEL), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(matmul(X[0], KERNEL), X[0] @ KERNEL, rtol=1e-6)


def test_on_a_cpu_the_kernels_gradient_contracts_one_dimension_unless_the_sequence_is_split():
    whole, flat = gradient(make_mesh(MeshSpec(), jax.devices()[:1]))
    split, kept = gradient(make_mesh(MeshSpec(context=8)))
    assert "tensor<32x16xf32>" in flat and "tensor<32x16xf32>" not in kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), whole, split)


@pytest.mark.parametrize("features, out", [(16, 24), (24, 16)])
def test_the_gradients_are_those_of_the_formula_for_wider_and_for_narrower_results(features, out):
    x, kernel = X.ravel()[: 8 * features].reshape(8, features), KERNEL.reshape(features, out)

    def gradients(product):
        return jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), argnums=(0, 1))(x, kernel)

    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(check, gradients(matmul), gradients(jnp.dot))


@pytest.mark.parametrize(("mesh", "merges"), [({"fsdp": 8}, True), ({"context": 8}, False), ({"tensor": 8}, False)])
def test_positions_are_merged_with_the_batch_unless_an_axis_splits_them(mesh, merges):
    with active(Layout(mesh=make_mesh(MeshSpec(**mesh)))):
        assert merges_positions() is merges


def test_parameters_carry_the_names_of_their_dimensions():
    dense = Dense(16, 24, axes=("embed", "mlp"), bias=True, rngs=nnx.Rngs(0))
    assert dense.kernel.get_metadata()["logical_axes"] == ("embed", "mlp")
    assert dense.bias is not None and dense.bias.get_metadata()["logical_axes"] == ("mlp",)
    assert jnp.array_equal(dense(X), matmul(X, dense.kernel.get_value()))
    assert Dense(16, 24, axes=("embed", "mlp"), rngs=nnx.Rngs(0)).bias is None


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_first_values_have_the_stated_deviation(scale):
    kernel = Dense(256, 256, axes=(None, None), scale=scale, rngs=nnx.Rngs(0)).kernel.get_value()
    assert abs(float(kernel.std()) * 16 / scale - 1) < 0.05
