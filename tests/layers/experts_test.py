"""Experts: comparison with a loop over tokens, the order of dropping, and equal results on every mesh."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from engine.base.errors import ShardingError, TaskError
from engine.config.schema import MeshSpec
from engine.layers import Experts, Stack
from engine.parallel.layout import QUANTIZED, Layout, active
from engine.parallel.mesh import batch_sharding, make_mesh
from engine.parallel.rules import RULES, partition_spec

BATCH, TIME, FEATURES, HIDDEN, COUNT, TOP_K = 8, 12, 16, 40, 8, 2
X = jax.random.normal(jax.random.key(0), (BATCH, TIME, FEATURES))
SEED = jax.random.normal(jax.random.key(1), X.shape)  # gradient of the result
LENGTHS = np.array([12, 5, 8, 3, 12, 8, 0, 12])
WEIGHT = jnp.asarray(np.arange(TIME) < LENGTHS[:, None], jnp.float32)
FACTORS = [None, 1.0]
MESHES = [
    {"expert": 4, "data": 2},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"expert": 8},
    {"data": 2, "context": 4},
]


@functools.cache
def make(factor):
    """Returns the module's graph, its parameters by name and their logical axes."""
    graph, state = nnx.split(Experts(FEATURES, HIDDEN, COUNT, TOP_K, capacity_factor=factor, rngs=nnx.Rngs(0)))
    names = {path[0]: variable.get_metadata()["logical_axes"] for path, variable in nnx.to_flat_state(state)}
    return graph, nnx.to_pure_dict(state), names


def apply(factor, params, x, weight):
    return nnx.merge(make(factor)[0], params)(x, weight)


def total(function, params, x, seed):
    """Returns a scalar that depends on all results, for gradients."""
    y, losses = function(params, x)
    return (y * seed).sum() + losses["balance"].sum() + 0.1 * losses["router_z"].sum(), (y, losses)


def shard(mesh, params):
    names = make(None)[2]
    return {
        name: jax.device_put(x, NamedSharding(mesh, partition_spec(name, x.shape, names[name], RULES, mesh)))
        for name, x in params.items()
    }


class GpuLayout(Layout):
    """A layout that reports GPUs as its devices."""

    @property
    def platform(self):
        return "gpu"


def compiled(factor, mesh=None, x=X, weight=WEIGHT, seed=SEED, kind=Layout):
    """Returns the gradients and results, and the text of the compiled program."""
    params = make(factor)[1]
    if mesh is not None:
        params = shard(mesh, params)
        x, weight, seed = jax.device_put((x, weight, seed), batch_sharding(mesh))
    function = jax.grad(
        lambda params, x, weight, seed: total(lambda p, x: apply(factor, p, x, weight), params, x, seed),
        argnums=(0, 1),
        has_aux=True,
    )
    with active(kind(mesh=mesh)):
        run = jax.jit(function).lower(params, x, weight, seed).compile()
    return jax.device_get(run(params, x, weight, seed)), run.as_text() or ""


@functools.cache
def one_device(factor):
    return compiled(factor)[0]


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def kept_choices(params, capacity):
    """Returns choices with a slot, by a loop over ranks and positions, and all choices: `[batch, time, experts]`."""
    logits = np.asarray(X @ params["router"])
    kept, chosen = np.zeros((2, BATCH, TIME, COUNT), bool)
    for b in range(BATCH):
        used = [0] * COUNT
        for rank, t in itertools.product(range(TOP_K), range(LENGTHS[b])):
            expert = np.argsort(-logits[b, t])[rank]
            chosen[b, t, expert] = True
            if used[expert] < capacity:
                used[expert] += 1
                kept[b, t, expert] = True
    return kept, chosen


@pytest.mark.parametrize("factor", [None, 0.5])
def test_result_equals_a_loop_over_tokens(factor):
    params = make(factor)[1]
    capacity = TIME if factor is None else math.ceil(TOP_K * TIME / COUNT * factor)
    kept, chosen = kept_choices(params, capacity)

    def wanted(params, x):
        p = jax.nn.softmax(x @ params["router"])
        weights = jnp.where(chosen, p, 0)
        weights = jnp.where(kept, weights / jnp.where(chosen.any(-1), weights.sum(-1), 1)[..., None], 0)
        hidden = jax.nn.silu(jnp.einsum("btf,efh->bteh", x, params["gate"]))
        hidden = hidden * jnp.einsum("btf,efh->bteh", x, params["up"])
        y = jnp.einsum("bteh,ehf,bte->btf", hidden, params["down"], weights)
        tokens = jnp.maximum(WEIGHT.sum(1), 1)
        balance = COUNT * ((chosen.sum(1) / TOP_K) * (p * WEIGHT[..., None]).sum(1)).sum(-1) / tokens
        router_z = (WEIGHT * jax.nn.logsumexp(x @ params["router"], axis=-1) ** 2).sum(1)
        dropped = jnp.asarray((chosen & ~kept).sum((1, 2)) / TOP_K, jnp.float32)
        return y, {"balance": balance, "router_z": router_z, "dropped": dropped}

    gradient = jax.jit(jax.grad(functools.partial(total, wanted), argnums=(0, 1), has_aux=True))
    assert_close(compiled(factor)[0], gradient(params, X, SEED))
    assert factor is None or (chosen & ~kept).any()


def test_capacity_for_every_token_equals_dropless():
    assert_close(compiled(COUNT / TOP_K)[0], one_device(None))


@pytest.mark.parametrize("factor", FACTORS)
def test_padding_is_ignored_and_uses_no_slot(factor):
    rows = np.flatnonzero(LENGTHS < TIME)
    x = jnp.where(WEIGHT[..., None] != 0, X, jnp.nan)[rows]
    (gradients, (y, losses)), _ = compiled(factor, x=x, weight=WEIGHT[rows], seed=SEED[rows])
    wanted, (wanted_y, wanted_losses) = one_device(factor)
    assert_close((y, losses), (wanted_y[rows], {name: value[rows] for name, value in wanted_losses.items()}))
    assert_close(gradients[1], wanted[1][rows])
    assert (y[WEIGHT[rows] == 0] == 0).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("factor", FACTORS)
def test_result_does_not_depend_on_batch_split_or_order(factor):
    order = np.array([5, 1, 7, 3, 0, 6, 2, 4])
    halves = [compiled(factor, x=X[i], weight=WEIGHT[i], seed=SEED[i])[0] for i in (order[:4], order[4:])]
    wanted, (y, losses) = one_device(factor)
    assert_close(jax.tree.map(np.add, halves[0][0][0], halves[1][0][0]), wanted[0])
    together = jax.tree.map(lambda a, b: np.concatenate([a, b]), halves[0][1], halves[1][1])
    assert_close(together, (y[order], {name: value[order] for name, value in losses.items()}))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
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


@pytest.mark.parametrize("mesh", [None, {"expert": 2, "fsdp": 2, "tensor": 2}], ids=str)
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
            graph = nnx.split(nnx.eval_shape(lambda: Stack(Layer, 2, rngs=nnx.Rngs(0))))[0]
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
    mesh = make_mesh(MeshSpec(expert=2, fsdp=2, tensor=2))

    def run(params, x):
        gradient = jax.grad(functools.partial(total, lambda params, x: apply(factor, params, x, WEIGHT)), has_aux=True)
        return gradient(params, x, SEED)

    with active(Layout(mesh=mesh)):
        gradient, (y, losses) = jax.jit(run)(*half)
    _, (wanted_y, wanted_losses) = jax.jit(run)(*wide)
    assert y.dtype == jnp.bfloat16 and all(loss.dtype == jnp.float32 for loss in losses.values())
    assert_close(losses, wanted_losses)
    assert_close(y.astype(jnp.float32), wanted_y, 5e-2)
    assert all(g.dtype == jnp.bfloat16 and jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_parameters_have_logical_axes():
    assert make(None)[2] == {
        "router": ("embed", None),
        "gate": ("expert", "embed", "mlp"),
        "up": ("expert", "embed", "mlp"),
        "down": ("expert", "mlp", "embed"),
    }


def test_indivisible_expert_count_raises_sharding_error():
    experts = Experts(FEATURES, HIDDEN, 6, 2, capacity_factor=None, rngs=nnx.Rngs(0))
    with active(Layout(mesh=make_mesh(MeshSpec(expert=4, data=2)))), pytest.raises(ShardingError) as error:
        experts(X)
    assert str(error.value) == (
        "Experts: count = 6 is not divisible by mesh axis expert=4. Use a multiple of 4 (8), or 2 devices on that axis."
    )


@pytest.mark.parametrize(("top_k", "factor", "message"), [(9, None, "Allowed: 1 to 8"), (2, 0.0, "Allowed: above 0")])
def test_invalid_top_k_or_capacity_raises_task_error(top_k, factor, message):
    with pytest.raises(TaskError, match=message):
        Experts(FEATURES, HIDDEN, COUNT, top_k, capacity_factor=factor, rngs=nnx.Rngs(0))


def test_layout_records_the_expert_axis_as_used():
    layout = Layout()
    with active(layout):
        jax.eval_shape(lambda x: apply(None, make(None)[1], x, None), X)
    assert layout.used == {"expert"}


@pytest.mark.parametrize("factor", FACTORS)
def test_replicated_experts_need_no_all_to_all(factor):
    params, mesh = make(factor)[1], make_mesh(MeshSpec(expert=4, data=2))
    with active(Layout(mesh=mesh, rules={**RULES, "expert": None})):
        run = jax.jit(lambda params, x: apply(factor, params, x, WEIGHT)).lower(params, X).compile()
    assert "all-to-all" not in (run.as_text() or "")
    assert_close(run(*jax.device_put((params, X), run.input_shardings[0])), one_device(factor)[1])


@pytest.mark.parametrize(("factor", "precision"), [(1.0, "float8"), (1.0, "int8"), (None, "float8"), (None, "int8")])
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
