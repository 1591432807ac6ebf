import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import ShardingError
from engine.config.hardware import AXES
from engine.config.schema import MeshSpec
from engine.layers.dot_product_attention import attention
from engine.parallel import schedule
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import make_mesh, resolve_axes
from engine.planning.candidates import Attention, Candidate, Choices, candidate_of, divisible, meshes, settings
from engine.planning.plan import with_candidate
from tests.planning import tiny
from tests.properties import examples


def test_meshes_divide_devices_and_rows():
    choices = Choices(64, ("data", "fsdp", "tensor"), 1, ("none",), ("float32",))
    found = list(meshes(tiny.machine("h100:1x8"), choices))
    assert all(math.prod(sizes) == 8 for sizes, _ in found)
    assert len(found) == 10  # 8 = 2 * 2 * 2 over three axes
    assert all(sizes[0] == sizes[3] == sizes[4] == 1 for sizes, _ in found)
    accumulated = {c.accumulate for c in settings(found[0], choices)}
    assert accumulated == {1, 2, 4, 8, 16, 32, 64}  # the first mesh is tensor=8


def test_repeats_of_a_pipeline_divide_its_layers_and_its_microbatches():
    choices = Choices(24, ("data", "pipeline"), 12, ("none",), ("float32",), repeats=(1, 3))
    found = list(meshes(tiny.machine("h100:1x4"), choices))
    candidates = [c for mesh in found for c in settings(mesh, choices)]
    assert {c.axes["pipeline"] for c in candidates} == {1, 2, 4}
    staged = [(c, c.axes["pipeline"], c.microbatches or 0) for c in candidates if c.axes["pipeline"] > 1]
    assert {(stages, c.repeats) for c, stages, _ in staged} == {(2, 1), (2, 3), (4, 1), (4, 3)}
    for c, stages, microbatches in staged:
        schedule.check_layers(12, stages, c.repeats)
        schedule.check_rows(24 // c.accumulate, c.shards, stages, microbatches, c.repeats)
    six = Choices(24, ("data", "pipeline"), 6, ("none",), ("float32",), repeats=(1, 3))
    found = [c for mesh in meshes(tiny.machine("h100:1x4"), six) for c in settings(mesh, six)]
    assert {(c.axes["pipeline"], c.repeats) for c in found} == {(1, 1), (2, 1), (2, 3)}


def test_meshes_divide_the_batches_of_evaluations():
    choices = Choices(64, ("data", "tensor"), 1, ("none",), ("float32",), evaluations={"heldout": 6})
    assert {sizes[1] for sizes, _ in meshes(tiny.machine("h100:1x8"), choices)} == {1, 2}


def test_overrides_of_a_pipeline_have_its_schedule():
    choices = Choices(64, ("data", "pipeline"), 8, ("none",), ("float32",), repeats=(1, 2), schedules=("gpipe", "1f1b"))
    found = {c: c.overrides() for c in settings(((4, 2, 1, 1, 1, 1), (1,) * 6), choices)}
    chosen = {(o["sharding.schedule"], o["sharding.repeats"]) for o in found.values()}
    assert chosen == {(kind, repeats) for kind in ("gpipe", "1f1b") for repeats in (1, 2)}
    assert len({str(c) for c in found}) == len(found)
    assert "sharding.schedule" not in tiny.candidate(data=8).overrides()


@st.composite
def candidates(draw):
    """A candidate; the axes between slices divide those over all slices."""
    between = tuple(draw(st.sampled_from([1, 1, 2])) for _ in AXES)
    sizes = tuple(outer * draw(st.sampled_from([1, 2, 4])) for outer in between)
    piped = sizes[AXES.index("pipeline")] > 1
    return Candidate(
        sizes,
        between,
        remat=draw(st.sampled_from(["none", "full", "dots", "save:hidden"])),
        accumulate=draw(st.integers(1, 8)),
        precision=draw(st.sampled_from(["float32", "bfloat16", "int8"])),
        zero1=draw(st.booleans()),
        offload_optimizer=draw(st.booleans()),
        microbatches=draw(st.integers(1, 8)) if piped else None,
        steps_per_dispatch=draw(st.integers(1, 8)),
        schedule=draw(st.sampled_from(["gpipe", "1f1b"])) if piped else "gpipe",
        repeats=draw(st.integers(1, 3)) if piped else 1,
        context=draw(st.sampled_from(["ring", "all-to-all"])) if sizes[AXES.index("context")] > 1 else "ring",
    )


@examples(100)
@given(candidates())
def test_candidate_of_a_config_is_the_one_that_made_it(candidate):
    train = dataclasses.replace(tiny.config().train, global_batch_size=32 * candidate.accumulate)
    config = with_candidate(dataclasses.replace(tiny.config(), train=train), candidate)
    slices = math.prod(candidate.between)
    axes = resolve_axes(config.mesh, math.prod(candidate.sizes), slices=slices if slices > 1 else None)
    assert candidate_of(config.train, config.sharding, axes) == candidate


def test_candidate_has_the_axes_and_the_microbatches_that_a_config_leaves_open():
    config = tiny.config()
    axes = resolve_axes(config.mesh, 8)
    assert candidate_of(config.train, config.sharding, axes) == tiny.candidate(data=8)
    axes = resolve_axes(dataclasses.replace(config.mesh, pipeline=2), 8)
    assert candidate_of(config.train, config.sharding, axes) == tiny.candidate(pipeline=2, data=4, microbatches=4)


@pytest.mark.parametrize(
    ("axes", "found"),
    [
        ({"context": 8}, ["ring", "all-to-all"]),
        ({"context": 16}, ["all-to-all"]),  # 48 positions are no 32 parts
        ({"context": 8, "tensor": 4}, ["ring"]),  # 4 heads of a device are no 8 parts
        ({"context": 5}, []),
        ({}, ["ring"]),
    ],
)
def test_sequences_are_split_as_each_attention_allows(axes, found):
    sizes = Attention.parse("attention:48,16,4,1")
    choices = Choices(64, ("data", "context"), 1, ("none",), ("float32",), attentions=[sizes])
    assert choices.contexts(tiny.candidate(**axes).axes) == found


def test_batch_that_no_mesh_divides_grows_to_the_devices_that_cannot_split_sequences():
    sizes = Attention.parse("attention:15,4,4,0")
    choices = Choices(1, ("data", "context"), 1, ("none",), ("float32",), attentions=[sizes])
    assert divisible(tiny.machine("h100:1x8"), choices) == {"train.global_batch_size": 8}


def test_engine_refuses_the_split_sequences_that_a_plan_leaves_out():
    for context, tensor in ((8, 1), (4, 2), (2, 4)):
        axes = tiny.candidate(context=context, tensor=tensor).axes
        for name, allows in (("ring", Attention.has_ring), ("all-to-all", Attention.has_all_to_all)):
            layout = Layout(mesh=make_mesh(MeshSpec(context=context, tensor=tensor)), context=name)
            q, k = (jax.ShapeDtypeStruct((8, 24, heads, 8), jnp.float32) for heads in (8, 2))
            expected = allows(Attention(24, 8, 2, causal=True), axes)
            call = with_layout(layout, functools.partial(attention, causal=True))
            with contextlib.nullcontext() if expected else pytest.raises(ShardingError):
                jax.eval_shape(call, q, k, k)
            assert "attention:24,8,2,1" in layout.used
