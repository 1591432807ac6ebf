"""Dense: its product, the names of its dimensions and its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.layers import Dense, project
from engine.parallel.layout import Layout, active, with_layout
from engine.parallel.mesh import make_mesh
from tests.layers.blocks import LikeTpu

X = jax.random.normal(jax.random.key(0), (4, 8, 16))


def test_parameters_have_logical_axes():
    dense = Dense(16, 24, axes=("embed", "mlp"), bias=True, rngs=nnx.Rngs(0))
    assert dense.kernel.get_metadata()["logical_axes"] == ("embed", "mlp")
    assert dense.bias is not None and dense.bias.get_metadata()["logical_axes"] == ("mlp",)
    assert Dense(16, 24, axes=("embed", "mlp"), rngs=nnx.Rngs(0)).bias is None


def test_dense_multiplies_the_last_dimension_and_adds_the_bias():
    dense = Dense(16, 24, axes=("embed", "mlp"), bias=True, rngs=nnx.Rngs(0))
    assert dense.bias is not None
    dense.bias.set_value(jnp.arange(24.0))
    wanted = jnp.einsum("btd,df->btf", X, dense.kernel.get_value()) + jnp.arange(24.0)
    np.testing.assert_allclose(dense(X), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_initial_values_have_the_documented_standard_deviation(scale):
    kernel = Dense(256, 256, axes=(None, None), scale=scale, rngs=nnx.Rngs(0)).kernel.get_value()
    assert abs(float(kernel.std()) * 16 / scale - 1) < 0.05


@pytest.mark.parametrize("quantized", [True, False])
def test_float8_applies_unless_the_layer_refuses(quantized):
    dense = Dense(16, 32, axes=("embed", "mlp"), quantized=quantized, rngs=nnx.Rngs(0))
    dense.kernel.set_value(dense.kernel.get_value().astype(jnp.bfloat16))
    with active(Layout(precision="float8")):
        program = str(jax.make_jaxpr(dense)(X.astype(jnp.bfloat16)))
    assert ("float8_e4m3fn" in program or "f8_e4m3fn" in program) == quantized


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_tpus_gather_a_split_kernel_and_get_the_values_and_gradients_of_one_device(mesh):
    devices = make_mesh(MeshSpec(**mesh))
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    for names, shape in ((("embed", "mlp"), (16, 24)), (("mlp", "embed"), (16, 8))):
        dense = Dense(*shape, axes=names, rngs=nnx.Rngs(0))
        graph, params = nnx.split(dense)

        def loss(params, x, graph=graph):
            return (nnx.merge(graph, params)(x) ** 2).sum()

        grads = jax.value_and_grad(loss, argnums=(0, 1))
        placed = jax.device_put(x, NamedSharding(devices, PartitionSpec(("data", "fsdp"))))
        split = NamedSharding(devices, PartitionSpec(*({"embed": "fsdp", "mlp": "tensor"}[name] for name in names)))
        params_split = jax.device_put(params, split)
        on_mesh = jax.jit(with_layout(LikeTpu(mesh=devices), grads))
        program = on_mesh.lower(params_split, placed).compile()
        found, wanted = program(params_split, placed), grads(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
        kinds = {c.kind for c in collectives(program.as_text() or "", devices) if c.axes == ("fsdp",)}
        assert {"all-gather", "all-to-all"} <= kinds


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_layers_of_one_input_have_the_results_and_gradients_of_single_calls(mesh, bias):
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    dense = nnx.List([Dense(16, out, axes=("embed", "mlp"), bias=bias, rngs=nnx.Rngs(out)) for out in (24, 8, 24)])
    graph, params = nnx.split(dense)

    def total(ys):
        return sum((jnp.sin(y) * i).sum() for i, y in enumerate(ys, 1))

    def together(params, x):
        return total(project(x, *nnx.merge(graph, params)))

    def alone(params, x):
        return total(layer(x) for layer in nnx.merge(graph, params))

    here = LikeTpu() if mesh is None else LikeTpu(mesh=make_mesh(MeshSpec(**mesh)))
    found, wanted = (
        jax.jit(with_layout(where, jax.value_and_grad(f, argnums=(0, 1))))(params, x)
        for where, f in ((here, together), (Layout(), alone))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
