"""Experts on meshes: equal results on every mesh, in a pipeline, in half precision and in eight bits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.config.schema import MeshSpec
from engine.layers import Experts, Stack
from engine.parallel.layout import QUANTIZED, Layout, active
from engine.parallel.mesh import batch_sharding, make_mesh
from engine.parallel.rules import RULES
from tests.layers.expert_layer import (
    BATCH,
    COUNT,
    FACTORS,
    FEATURES,
    HIDDEN,
    SEED,
    SPLIT,
    TOP_K,
    WEIGHT,
    GpuLayout,
    X,
    apply,
    assert_close,
    compiled,
    make,
    one_device,
    shard,
    total,
)

# Each way to drop with each mesh axis; the two meshes with neither of both have one of them.
MESHES = [(factor, axes) for factor in FACTORS for axes in (SPLIT, {"data": 2, "context": 4})]
MESHES += [(None, {"expert": 4, "data": 2}), (1.0, {"expert": 8})]


@pytest.mark.parametrize(("factor", "mesh"), MESHES, ids=str)
def test_every_mesh_gives_equal_results_by_all_to_all(factor, mesh):
    found, text = compiled(factor, make_mesh(MeshSpec(**mesh)))
    assert_close(found, one_device(factor))
    if "context" in mesh:
        return
    gathered = re.findall(r"= (\S+) all-gather\(", text)
    exchanged = re.findall(r"= (\(.*?\)) all-to-all\(", text)  # one operand for each device of the group
    assert {shape.count("[") for shape in exchanged} == {mesh["expert"]}
    assert any(f",{FEATURES}]" in shape for shape in exchanged)
    hidden, experts = HIDDEN // mesh.get("tensor", 1), COUNT // mesh["expert"]
    kernels = (f"[{experts},{FEATURES},{hidden}]", f"[{experts},{hidden},{FEATURES}]", f"[{FEATURES},{COUNT}]")
    assert all(any(kernel in shape for kernel in kernels) for shape in gathered)
    assert bool(gathered) == ("fsdp" in mesh)


@pytest.mark.parametrize("mesh", [None, SPLIT], ids=str)
def test_batched_products_of_a_gpu_give_equal_results(mesh):
    found, _ = compiled(None, mesh and make_mesh(MeshSpec(**mesh)), kind=GpuLayout)
    assert_close(found, one_device(None))


@pytest.mark.optimized  # without fused multiply-add, rounding is 1.2e-5
@pytest.mark.parametrize(("factor", "remat"), [(None, "full"), (1.0, "none")])
def test_pipeline_stage_gives_equal_results(factor, remat):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.experts = Experts(FEATURES, HIDDEN, COUNT, TOP_K, capacity_factor=factor, rngs=rngs)

        def __call__(self, carry, weight, rng):
            y, losses = self.experts(carry["x"], weight)
            return {"x": carry["x"] + y, "paid": carry["paid"] + losses["balance"] + losses["router_z"]}

    def gradient(layout):
        with active(layout):
            graph = nnx.split(nnx.eval_shape(lambda: Stack(Layer, 2, rngs=nnx.Rngs(0), unroll=False)))[0]
            params = {name: jnp.stack([value, 0.9 * value]) for name, value in make(factor)[1].items()}

            def loss(params, x):
                model = nnx.merge(graph, {"layers": {"experts": params}})
                carry = model({"x": x, "paid": jnp.zeros(BATCH)}, WEIGHT)
                return (carry["x"] * SEED).sum() + carry["paid"].sum(), carry

            return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, X)

    mesh = make_mesh(MeshSpec(pipeline=2, expert=2, tensor=2))
    assert_close(gradient(Layout(mesh=mesh, remat=remat)), gradient(Layout()))


@pytest.mark.parametrize("factor", FACTORS)
def test_half_precision_is_close_and_keeps_its_dtype(factor):
    params = make(factor)[1]
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, X))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    mesh = make_mesh(MeshSpec(**SPLIT))

    def run(params, x):
        return apply(factor, params, x, WEIGHT)

    with active(Layout(mesh=mesh)):
        gradient, (y, losses) = jax.jit(jax.grad(functools.partial(total, run), has_aux=True))(*half, SEED)
    wanted_y, wanted_losses = jax.jit(run)(*wide)
    assert y.dtype == jnp.bfloat16 and all(loss.dtype == jnp.float32 for loss in losses.values())
    assert_close(losses, wanted_losses)
    assert_close(y.astype(jnp.float32), wanted_y, 5e-2)
    assert all(g.dtype == jnp.bfloat16 and jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("factor", FACTORS)
def test_replicated_experts_need_no_all_to_all(factor):
    params, mesh = make(factor)[1], make_mesh(MeshSpec(expert=4, data=2))
    with active(Layout(mesh=mesh, rules={**RULES, "expert": None})):
        run = jax.jit(lambda params, x: apply(factor, params, x, WEIGHT)).lower(params, X).compile()
    assert "all-to-all" not in (run.as_text() or "")
    assert_close(run(*jax.device_put((params, X), run.input_shardings[0])), one_device(factor)[1])


@pytest.mark.parametrize(("factor", "precision"), [(1.0, "float8"), (None, "int8")])
def test_eight_bits_give_equal_results_on_a_mesh(factor, precision):
    """Within sums of bfloat16. Without capacity, each device has its own scales of int8, and rounds to other values."""
    graph, state = nnx.split(Experts(FEATURES, 32, COUNT, TOP_K, capacity_factor=factor, rngs=nnx.Rngs(0)))
    mesh = make_mesh(MeshSpec(expert=2, fsdp=2, tensor=2))
    exact = {"xla_allow_excess_precision": False}  # else XLA:CPU leaves out some roundings to bfloat16

    def loss(params, x, weight, seed):
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
        y, _ = nnx.merge(graph, half[0])(half[1], weight)
        return (y.astype(jnp.float32) * seed).sum(), y

    def gradient(layout, *args):
        with active(layout):
            found = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=exact)(*args)
        return [np.asarray(a, np.float64) for a in jax.tree.leaves(found)], layout.used

    params = nnx.to_pure_dict(state)
    wanted, used = gradient(Layout(precision=precision), params, X, WEIGHT, SEED)
    placed = jax.device_put((X, WEIGHT, SEED), batch_sharding(mesh))
    found, _ = gradient(Layout(mesh=mesh, precision=precision), shard(mesh, params), *placed)
    assert QUANTIZED in used
    for a, b in zip(found, wanted, strict=True):
        tolerance = 2.0**-5 if factor is None and precision == "int8" else 2.0**-7
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)
