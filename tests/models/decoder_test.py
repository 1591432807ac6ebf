"""The decoder: packed documents, causality, tied embeddings and router losses."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.moe_decoder import MoeLanguageModel
from engine import TaskError
from tests import zoo

SIZES: dict[str, Any] = {"vocabulary": 32, "width": 16, "hidden": 32, "depth": 2, "heads": 4, "kv_heads": 2}
TIME = 12


def row(*documents):
    """One packed row `[1, TIME]` of the documents."""
    arrays = {
        "tokens": np.concatenate([d[:-1] for d in documents]),
        "targets": np.concatenate([d[1:] for d in documents]),
        "segment_ids": np.repeat(np.arange(1, len(documents) + 1), [len(d) - 1 for d in documents]),
        "positions": np.concatenate([np.arange(len(d) - 1) for d in documents]),
        "weight": np.ones(sum(len(d) - 1 for d in documents)),
    }
    return {
        name: jnp.asarray(np.pad(x, (0, TIME - len(x)))[None], jnp.float32 if name == "weight" else jnp.int32)
        for name, x in arrays.items()
    }


DOCUMENTS = [np.random.default_rng(i).integers(0, 32, n + 1) for i, n in enumerate((5, 6))]
TASKS = {
    "dense": LanguageModel(**SIZES),
    "tied": LanguageModel(**SIZES, tied=True),
    "experts": MoeLanguageModel(**SIZES, experts=4, capacity_factor=None),
}


def call_of(task):
    """Returns the jitted `batch -> losses of all positions` of the untrained model."""
    graph, params = nnx.split(task.build(nnx.Rngs(0)))
    return functools.partial(jax.jit(lambda params, batch: nnx.merge(graph, params)(batch, None)[0]), params)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_packed_documents_have_the_losses_of_single_documents(name):
    model = call_of(TASKS[name])
    packed = model(row(*DOCUMENTS))
    single = [model(row(document))[0, : len(document) - 1] for document in DOCUMENTS]
    np.testing.assert_allclose(packed[0, :11], np.concatenate(single), atol=1e-5)
    assert len(np.unique(np.round(packed[0, :11], 3))) > 5


@pytest.mark.slow
def test_gradient_of_a_packed_row_is_the_sum_over_its_documents():
    task = TASKS["dense"]
    graph, params = nnx.split(task.build(nnx.Rngs(0)), nnx.Param)

    def total(params, batch):
        return task.loss(nnx.merge(graph, params), batch, None).total.sum()

    gradient = functools.partial(jax.jit(jax.grad(total)), params)

    parts = jax.tree.map(jnp.add, *(gradient(row(document)) for document in DOCUMENTS))
    # Relative to the norm of each array, as in meshes_test.py: that of the embedding is a hundred times larger.
    errors = jax.tree.map(
        lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), gradient(row(*DOCUMENTS)), parts
    )
    assert max(jax.tree.leaves(errors)) <= 1e-5, errors


def test_attention_is_causal():
    model, batch = call_of(TASKS["dense"]), row(DOCUMENTS[0])
    changed = batch | {"tokens": batch["tokens"].at[0, 3].add(1)}
    before, after = model(batch), model(changed)
    assert jnp.array_equal(before[0, :3], after[0, :3]) and not jnp.allclose(before[0, 3:5], after[0, 3:5])


def test_tied_embeddings_remove_the_output_kernel():
    def count(task):
        return sum(x.size for x in jax.tree.leaves(nnx.state(task.build(nnx.Rngs(0)), nnx.Param)))

    assert count(TASKS["dense"]) - count(TASKS["tied"]) == 32 * 16
    wide = LanguageModel(vocabulary=512, width=256, hidden=1024, depth=4, heads=8)
    shapes = nnx.state(nnx.eval_shape(lambda: wide.build(nnx.Rngs(0))), nnx.Param)
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == 4_458_752


def step_flops(task):
    """Returns the model FLOPs of a step of eight packed rows."""
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row(*DOCUMENTS))
    return zoo.program(task, batch_size=ROWS, example=example).flops_per_step


ROWS, LAYERS, HEADS, HEAD_DIM = 8, SIZES["depth"], SIZES["heads"], SIZES["width"] // SIZES["heads"]
ATTENTION = 16 * 16 * 2 + 2 * 16 * 8  # parameters of query and output; keys and values have half the heads
SCORES = 12 * LAYERS * HEADS * HEAD_DIM * TIME / 2  # FLOPs of a token; causal order halves them


@pytest.mark.parametrize("name", ["dense", "tied"])
def test_flops_of_a_step_are_those_of_the_palm_formula(name):
    """6 N + 12 L H Q T / 2 per token (Chowdhery et al. 2022, appendix B), with N parameters of matrix products."""
    parameters = LAYERS * (ATTENTION + 3 * 16 * 32) + 16 * 32  # gated feed-forward layers, and the output kernel
    assert step_flops(TASKS[name]) == ROWS * TIME * (6 * parameters + SCORES)


@pytest.mark.parametrize("capacity_factor", [None, 0.5, 2.0])
@pytest.mark.parametrize("top_k", [1, 2])
def test_flops_of_experts_are_those_of_the_chosen_experts(top_k, capacity_factor):
    """A token counts `top_k` experts and the router, and the weighted means in the balance loss."""
    count = 4
    task = MoeLanguageModel(**SIZES, experts=count, top_k=top_k, capacity_factor=capacity_factor)
    parameters = LAYERS * (ATTENTION + top_k * 3 * 16 * 32 + 16 * count) + 16 * 32
    balance = LAYERS * 2 * count * 3  # the share of choices, and the load with its gradient
    assert step_flops(task) == ROWS * TIME * (6 * parameters + SCORES + balance)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(TaskError, match=r"task.heads = 5: task.width = 16 must be a multiple of 10"):
        LanguageModel(**{**SIZES, "heads": 5})


def test_scaling_that_is_not_built_is_refused():
    with pytest.raises(
        TaskError, match=r"task.rope_scaling: found {'factor': 8}. Allowed: None, or a dictionary with "
    ):
        LanguageModel(**{**SIZES, "rope_scaling": {"factor": 8}})


@pytest.mark.slow
def test_router_losses_are_added_to_the_loss():
    task, batch = TASKS["experts"], row(*DOCUMENTS)
    model = task.build(nnx.Rngs(0))
    loss = task.loss(model, batch, None)
    free = dataclasses.replace(task, balance=0.0, router_z=0.0).loss(model, batch, None)
    assert float(free.total[0]) == float(loss.metrics["nats"].total[0]) < float(loss.total[0])
    assert float(loss.weight[0]) == 11 and float(loss.metrics["dropped"].total[0]) == 0
