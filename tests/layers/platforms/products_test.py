"""Products: equal results in every shape and on every mesh, and the shape that a CPU computes fastest."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.config.schema import MeshSpec
from engine.layers.platforms.products import logits, matmul, merges_positions
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

X = jax.random.normal(jax.random.key(0), (4, 8, 16))
KERNEL = jax.random.normal(jax.random.key(1), (16, 24))


def gradient(mesh):
    with active(Layout(mesh=mesh)):
        f = jax.jit(jax.grad(lambda x, w: (matmul(x, w) ** 2).sum(), argnums=(0, 1)))
        return f(X, KERNEL), f.lower(X, KERNEL).as_text()


def test_matmul_contracts_the_last_dimension():
    np.testing.assert_allclose(matmul(X, KERNEL), jnp.einsum("btd,df->btf", X, KERNEL), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(matmul(X[0], KERNEL), X[0] @ KERNEL, rtol=1e-6)


def test_kernel_gradient_on_cpu_contracts_one_dimension_unless_a_mesh_axis_splits_the_sequence():
    whole, flat = gradient(make_mesh(MeshSpec(), jax.devices()[:1]))
    split, kept = gradient(make_mesh(MeshSpec(context=8)))
    assert "tensor<32x16xf32>" in flat and "tensor<32x16xf32>" not in kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), whole, split)


@pytest.mark.parametrize("features, out", [(16, 24), (24, 16)])
def test_gradients_equal_those_of_jax_for_wider_and_narrower_results(features, out):
    x, kernel = X.ravel()[: 8 * features].reshape(8, features), KERNEL.reshape(features, out)

    def gradients(product):
        return jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), argnums=(0, 1))(x, kernel)

    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(check, gradients(matmul), gradients(jnp.dot))


@pytest.mark.parametrize(("mesh", "merges"), [({"fsdp": 8}, True), ({"context": 8}, False), ({"tensor": 8}, False)])
def test_positions_merge_with_the_batch_unless_a_mesh_axis_splits_them(mesh, merges):
    with active(Layout(mesh=make_mesh(MeshSpec(**mesh)))):
        assert merges_positions() is merges


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_half_precision_logits_on_an_accelerator_come_from_half_precision_products(dtype, monkeypatch):
    monkeypatch.setattr(Layout, "platform", "gpu")
    x, kernel = X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16).astype(dtype)

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: jnp.sin(logits(x, kernel)).sum(), argnums=(0, 1))(x, kernel)

    found, wanted = gradients(x, kernel), gradients(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert [g.dtype for g in found] == [jnp.bfloat16, dtype]
    for ours, theirs in zip(found, wanted, strict=True):  # a product rounds its operand and its result
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=2**-7 * np.abs(theirs).max())
    text = jax.jit(gradients).lower(x, kernel).as_text()
    operands = re.findall(r"dot_general .*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)", text)
    assert set(operands) == {("bf16", "bf16")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_the_product_in_float32(dtype):
    x, kernel = X.astype(dtype), KERNEL.astype(dtype)
    found = logits(x, kernel)
    assert found.dtype == jnp.float32
    wanted = jnp.einsum("btd,df->btf", x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_logits_on_cpu_merge_positions_with_the_batch_unless_a_mesh_axis_splits_them():
    def program(**axes):
        with active(Layout(mesh=make_mesh(MeshSpec(**axes)))):
            return jax.jit(lambda x: logits(x, KERNEL)).lower(X).as_text()

    assert "tensor<32x24xf32>" in program(fsdp=8) and "tensor<32x24xf32>" not in program(tensor=8)
