"""Experts on one device: comparison with a loop over tokens, and the order of dropping."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import ShardingError, TaskError
from engine.config.schema import MeshSpec
from engine.layers import Experts
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from tests.layers.expert_layer import (
    BATCH,
    COUNT,
    FACTORS,
    FEATURES,
    HIDDEN,
    LENGTHS,
    SEED,
    TIME,
    TOP_K,
    WEIGHT,
    X,
    apply,
    assert_close,
    compiled,
    make,
    one_device,
    total,
)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("factor", FACTORS)
def test_padding_is_ignored_and_uses_no_slot(factor):
    rows = np.flatnonzero(LENGTHS < TIME)
    x = jnp.where(WEIGHT[..., None] != 0, X, jnp.nan)[rows]
    (gradients, (y, losses)), _ = compiled(factor, x=x, weight=WEIGHT[rows], seed=SEED[rows])
    wanted, (wanted_y, wanted_losses) = one_device(factor)
    assert_close((y, losses), (wanted_y[rows], {name: value[rows] for name, value in wanted_losses.items()}))
    assert_close(gradients[1], wanted[1][rows])
    assert (y[WEIGHT[rows] == 0] == 0).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.slow
@pytest.mark.parametrize("factor", FACTORS)
def test_result_does_not_depend_on_batch_split_or_order(factor):
    order = np.array([5, 1, 7, 3, 0, 6, 2, 4])
    halves = [compiled(factor, x=X[i], weight=WEIGHT[i], seed=SEED[i])[0] for i in (order[:4], order[4:])]
    wanted, (y, losses) = one_device(factor)
    assert_close(jax.tree.map(np.add, halves[0][0][0], halves[1][0][0]), wanted[0])
    together = jax.tree.map(lambda a, b: np.concatenate([a, b]), halves[0][1], halves[1][1])
    assert_close(together, (y[order], {name: value[order] for name, value in losses.items()}))


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
