"""A weight that is split over the devices of the rows: equal values and gradients, one gather, one reduction."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.layers import whole_weight
from engine.layers.whole_weight import exchange_and_sum, with_whole_weights
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from tests.layers.blocks import LikeTpu

X = jax.random.normal(jax.random.key(0), (16, 8))
WEIGHT = jax.random.normal(jax.random.key(1), (8, 8))
SCALE = jnp.arange(16.0) / 16
MESHES = [
    {"fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"fsdp": 2, "tensor": 4},
    {"fsdp": 2, "expert": 2, "pipeline": 2},
    {"data": 8},
    {"tensor": 8},
]


def compiled(mesh, dtype=jnp.float32, names=("embed", "mlp"), layout: Callable[..., Layout] = Layout, **settings):
    def function(x, weight, scale):
        return jnp.sin(x @ weight.astype(x.dtype)) * scale[:, None]

    def total(x, weight):
        y = with_whole_weights(function, x, (weight,), (names,), SCALE.astype(dtype), **settings)
        return (y**2).sum(), y

    def step(x, weight):
        with active(layout(mesh=mesh)):
            (_, y), gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, weight)
        return y, gradient

    x, weight = X.astype(dtype), WEIGHT.astype(dtype)
    if mesh is not None:
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        weight = jax.device_put(weight, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    program = jax.jit(step).lower(x, weight).compile()
    return program, jax.device_get(program(x, weight))


@pytest.mark.parametrize("layout", [Layout, LikeTpu])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_values_and_gradients_equal_those_of_one_device(mesh, layout):
    _, found = compiled(make_mesh(MeshSpec(**mesh)), layout=layout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, compiled(None)[1])


def test_mesh_axis_that_two_dimensions_are_mapped_to_splits_the_first_of_them():
    """As with `sharding.rules.vocab=fsdp`, for a kernel whose parameter does not name its first dimension."""
    _, found = compiled(make_mesh(MeshSpec(fsdp=8)), names=("embed", "embed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, compiled(None)[1])


def test_weight_is_gathered_once_in_each_pass_and_its_gradient_summed_once():
    mesh = make_mesh(MeshSpec(fsdp=8))
    found = collectives(str(compiled(mesh)[0].as_text()), mesh)
    assert 1 <= sum(c.count for c in found if c.kind == "all-gather") <= 2  # once for each pass
    assert sum(c.count for c in found if c.kind in ("all-reduce", "reduce-scatter") and c.bytes >= 8 * 4) == 1


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_wide_weight_has_a_gradient_that_is_rounded_once(mesh):
    _, (_, (_, gradient)) = compiled(make_mesh(MeshSpec(**mesh)), jnp.bfloat16, wide=True)
    _, (_, (_, wanted)) = compiled(None, jnp.bfloat16, wide=True)
    assert gradient.dtype == jnp.bfloat16
    wanted = wanted.astype(np.float32)
    np.testing.assert_allclose(gradient.astype(np.float32), wanted, rtol=2**-7, atol=2**-9 * np.abs(wanted).max())


def test_tpus_sum_a_gradient_by_one_exchange():
    mesh = make_mesh(MeshSpec(fsdp=8))
    found = collectives(str(compiled(mesh, layout=LikeTpu)[0].as_text()), mesh)
    assert {c.kind for c in found if c.bytes >= 8 * 4} == {"all-gather", "all-to-all"}


def test_tpus_do_not_gather_a_gradient_over_other_axes_to_sum_it():
    mesh = make_mesh(MeshSpec(fsdp=4, tensor=2))
    program, found = compiled(mesh, layout=LikeTpu)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, compiled(None)[1])
    [exchange] = [c for c in collectives(str(program.as_text()), mesh) if c.kind == "all-to-all"]
    assert exchange.axes == ("fsdp",) and exchange.bytes == found[1][1].nbytes / 2


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_tpus_gather_weights_that_zero1_splits_over_data(mesh):
    devices = make_mesh(MeshSpec(**mesh))
    layout = functools.partial(LikeTpu, zero1=True, precision="bfloat16")
    program, found = compiled(devices, layout=layout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, compiled(None)[1])
    kinds = {(c.kind, axis) for c in collectives(str(program.as_text()), devices) for axis in c.axes or ()}
    assert {("all-gather", "data"), ("all-to-all", "data")} <= kinds


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("most", [16, 4, 2])
def test_exchange_sums_the_parts_of_all_devices_in_float32(dimension, most, monkeypatch):
    monkeypatch.setattr(whole_weight, "MOST", most)
    mesh, axes = make_mesh(MeshSpec(data=2, fsdp=4)), ("data", "fsdp")
    x = jax.random.normal(jax.random.key(2), (8, 24, 16)).astype(jnp.bfloat16)  # of each device [24, 16]

    def own_part(x):
        return exchange_and_sum(x[0], axes, dimension)

    out = PartitionSpec(*[None] * dimension, axes)
    mapped = jax.shard_map(own_part, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=out)
    wanted = x.astype(jnp.float32).sum(0)
    found = jax.jit(mapped)(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=2**-8, atol=1e-6)
