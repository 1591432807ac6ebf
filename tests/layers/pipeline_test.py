"""A pipeline gives the results and gradients of one device for every schedule."""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from engine.base.errors import ShardingError, TaskError
from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText, arrays
from engine.config.schema import MeshSpec
from engine.layers import Dense, Stack, attention
from engine.parallel import schedule
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import BATCH_AXES
from engine.parallel.rules import RULES
from tests import zoo
from tests.layers import blocks

ONE = Layout()


@functools.cache
def one_device(count: int, rows: int):
    """Returns the results of a batch on one device, with dropout, and the gradients."""
    call, params = blocks.gradient(blocks.stack(count, ONE, dropout=0.3), ONE)
    return jax.device_get(call(params, *blocks.batch(rows)))


def call(graph, params, x):
    """Calls the stack with these parameters."""
    stack: Any = nnx.merge(graph, params)
    return stack(x)


# The pairs of schedule, mesh, repeats, remat and number of microbatches, instead of their product.
@pytest.mark.parametrize(
    ("mesh", "count", "rows", "fields"),
    [
        (MeshSpec(pipeline=2, data=2, tensor=2), 8, 32, {}),
        (MeshSpec(pipeline=4, fsdp=2), 8, 32, {"repeats": 2}),
        (MeshSpec(pipeline=8), 8, 32, {"microbatches": 4}),
        (MeshSpec(pipeline=4, fsdp=2), 8, 20, {"microbatches": 5, "remat": "full"}),  # not divisible by the stages
        (MeshSpec(pipeline=4, fsdp=2), 8, 20, {"schedule": "1f1b", "microbatches": 5}),
        (MeshSpec(pipeline=2, data=2, tensor=2), 8, 32, {"schedule": "1f1b", "repeats": 2, "remat": "full"}),
    ],
)
def test_value_and_gradient_equal_those_of_one_device(mesh, count, rows, fields):
    layout = blocks.make_layout(mesh, **fields)
    call, params = blocks.gradient(blocks.stack(count, layout, dropout=0.3), layout)
    found = jax.device_get(call(params, *blocks.batch(rows)))
    want = one_device(count, rows)
    in_order = jax.tree.map(lambda a, b: np.reshape(a, np.shape(b)), found, want)
    zoo.assert_close(in_order, want, 1e-5)


def test_half_precision_is_supported():
    """On a CPU, XLA cannot sum bfloat16 over a manual axis."""
    results = []
    for layout in (ONE, blocks.make_layout(MeshSpec(pipeline=2, data=4), microbatches=2)):
        stack = blocks.stack(2, layout)
        call, params = blocks.gradient(stack, layout)
        half = [x.astype(jnp.bfloat16) for x in params]
        results.append(call(half, *blocks.batch(8, jnp.bfloat16)))
    one, two = jax.tree.map(lambda x: x.astype(jnp.float32), results)
    zoo.assert_close(two, one, 2**-7)


class Attending(nnx.Module):
    """A layer of causal attention, with two heads."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = Dense(blocks.WIDTH, 3 * blocks.WIDTH, axes=("embed", "heads"), rngs=rngs)

    def __call__(self, x, rng):
        q, k, v = jnp.split(self.up(x).reshape(*x.shape[:2], 2, -1), 3, axis=-1)
        return x + attention(q, k, v, causal=True).reshape(x.shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_stages_split_sequences(dtype):
    mesh, results = MeshSpec(pipeline=2, data=2, context=2), []
    for layout in (ONE, blocks.make_layout(mesh, microbatches=2, remat="full")):
        with active(layout):
            graph, params = nnx.split(Stack(Attending, 2, rngs=nnx.Rngs(0), unroll=False))

        def loss(params, x, graph=graph, layout=layout):
            with active(layout):
                return jnp.sin(call(graph, params, x).astype(jnp.float32)).mean()

        inputs = jax.tree.map(lambda x: x.astype(dtype), (params, blocks.batch(8)[0][0]))
        quick = {"xla_backend_optimization_level": 0}
        results.append(jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=quick)(*inputs))
    one, two = jax.tree.map(lambda x: x.astype(jnp.float32), results)
    zoo.assert_close(two, one, 1e-6 if dtype == jnp.float32 else 2**-7)


class Normed(nnx.Module):
    """A layer that is undefined at 0."""

    def __init__(self, rngs: nnx.Rngs):
        self.w = nnx.Param(jnp.ones(4))

    def __call__(self, x, rng):
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True)) * self.w.get_value()


def test_idle_stages_give_no_nan():
    layout = blocks.make_layout(MeshSpec(pipeline=4, data=2), microbatches=4)
    with active(layout):
        stack = Stack(Normed, 4, rngs=nnx.Rngs(0))
        graph, params = nnx.split(stack)
        loss = jax.jit(jax.grad(lambda params, x: call(graph, params, x)[:, 0].sum()))
        grads = loss(params, jax.random.normal(jax.random.key(0), (8, 4)))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_output_is_split_over_the_stages_by_the_rules():
    mesh = MeshSpec(pipeline=2, data=4)
    for rule, want in ((RULES["batch"], ("data", "pipeline")), (BATCH_AXES, ("data",))):
        layout = blocks.make_layout(mesh, rules={**RULES, "batch": rule})
        with active(layout):
            graph, params = nnx.split(Stack(Normed, 2, rngs=nnx.Rngs(0)))
            out = jax.jit(functools.partial(call, graph))(params, jnp.ones((16, 4)))
        assert layout.mesh is not None
        assert out.sharding.is_equivalent_to(jax.NamedSharding(layout.mesh, PartitionSpec(want)), 2)


def test_no_device_holds_activations_of_the_global_batch():
    layout = blocks.make_layout(MeshSpec(pipeline=2, data=2, fsdp=2), microbatches=8, remat="full")
    call, params = blocks.gradient(blocks.stack(2, layout), layout)
    rows = 512
    (x, total), mask, _ = blocks.batch(rows)
    assert layout.mesh is not None
    split = jax.NamedSharding(layout.mesh, PartitionSpec(("data", "fsdp", "pipeline")))
    inputs = jax.device_put(((x, total), mask), split)
    text = HloText.parse(str(call.lower(params, *inputs, None).compile().as_text()))
    sizes = [math.prod(dims) for _, _, i in text.executed() for _, dims in arrays(i.shape)]
    # The largest array has all ticks of a stage: 9 / 8 of a quarter of the rows.
    assert rows * blocks.TIME * blocks.WIDTH / 4 <= max(sizes) < rows * blocks.TIME * blocks.WIDTH / 2


class Wide(nnx.Module):
    """A layer with a parameter that is large enough to be split over `fsdp`."""

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.ones((128, 128)))

    def __call__(self, x, rng):
        for _ in range(4):
            x = jnp.sin(x @ self.w.get_value())
        return x


def wide_gradient(mesh, **fields):
    """Returns the compiled gradient of four wide layers, and its collectives."""
    layout = blocks.make_layout(mesh, **fields)
    assert layout.mesh is not None
    with active(layout):
        graph, params = nnx.split(Stack(Wide, 4, rngs=nnx.Rngs(0)))
        dims = (None, "pipeline", "fsdp") if layout.repeats > 1 else ("pipeline", "fsdp")
        params = jax.device_put(params, jax.NamedSharding(layout.mesh, PartitionSpec(*dims)))
        loss = jax.jit(jax.grad(lambda params, x: jnp.sin(call(graph, params, x)).sum()))
        compiled = loss.lower(params, jnp.ones((64, 128))).compile()
    return compiled, collectives(str(compiled.as_text()), layout.mesh)


def test_ticks_keep_no_copies_of_parameters_and_do_not_sum_gradients_over_data():
    """The backward pass slices the parameters of a tick again."""
    kept, products, sums = {}, {}, {}
    for choice in ("none", "full"):
        mesh = MeshSpec(pipeline=2, data=4)
        compiled, found = wide_gradient(mesh, repeats=2, microbatches=8, remat=choice)
        memory = compiled.memory_analysis()
        assert memory is not None
        kept[choice], products[choice] = memory.temp_size_in_bytes, str(compiled.as_text()).count(" dot(")
        sums[choice] = sum(c.bytes for c in found if "data" in (c.axes or ()))
    assert sums == dict.fromkeys(sums, 2 * 128 * 128 * 4)  # of the layers of a device, once
    assert kept["full"] < kept["none"] < schedule.ticks(2, 8, 2) * 128 * 128 * 4
    assert products == {"none": 4 + 8, "full": 4 + 4 + 8}


def over_fsdp(found):
    """Returns kind -> bytes of the results of the collectives over `fsdp`."""
    sizes = collections.Counter()
    for c in found:
        sizes[c.kind] += c.bytes if c.axes == ("fsdp",) else 0
    return +sizes


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_stage_gathers_its_parameters_once_and_scatters_their_gradients_once(kind):
    """XLA joins the gathers of both passes of 1f1b."""
    _, found = wide_gradient(MeshSpec(pipeline=2, fsdp=4), microbatches=8, schedule=kind)
    stage = 2 * 128 * 128 * 4
    assert over_fsdp(found) == {"all-gather": stage, "reduce-scatter": stage / 4}


def test_stage_gathers_its_parameters_in_each_tick_if_they_take_too_much_memory_whole(monkeypatch):
    layout = blocks.make_layout(MeshSpec(pipeline=2, data=2, fsdp=2))
    monkeypatch.setattr(schedule, "gathers_once", lambda *args: False)
    call, params = blocks.gradient(blocks.stack(8, layout, dropout=0.3), layout)
    zoo.assert_close(jax.device_get(call(params, *blocks.batch(32))), one_device(8, 32), 1e-5)
    _, found = wide_gradient(MeshSpec(pipeline=2, fsdp=4), microbatches=8)
    assert over_fsdp(found)["all-gather"] > 4 * 2 * 128 * 128 * 4


def test_training_over_a_pipeline_gives_the_losses_of_one_device():
    batches = zoo.batches(3, 32)
    task = blocks.Classify()
    _, one = zoo.run(zoo.program(task, batch_size=32), batches)
    split = zoo.program(
        task,
        mesh=MeshSpec(pipeline=2, data=2, fsdp=2),
        batch_size=32,
        accumulate=2,
        layout={"repeats": 2, "microbatches": 2},
    )
    _, many = zoo.run(split, batches)
    np.testing.assert_allclose(zoo.losses(many), zoo.losses(one), atol=1e-5)


def test_indivisible_batch_raises_sharding_error():
    layout = blocks.make_layout(MeshSpec(pipeline=4, data=2))
    call, params = blocks.gradient(blocks.stack(4, layout), layout)
    with pytest.raises(ShardingError, match=r"a batch of 24 rows does not divide over 8 microbatches x 2 shards"):
        call(params, *blocks.batch(24))
    layout = blocks.make_layout(MeshSpec(pipeline=4, data=2), repeats=2, microbatches=6)
    call, params = blocks.gradient(blocks.stack(8, layout), layout)
    with pytest.raises(ShardingError, match=r"microbatches go in groups of mesh.pipeline = 4"):
        call(params, *blocks.batch(24))


def test_input_without_batch_dimension_raises_task_error():
    layout = blocks.make_layout(MeshSpec(pipeline=4, data=2))
    call, params = blocks.gradient(blocks.stack(4, layout), layout)
    carry, mask, keys = blocks.batch(16)
    with pytest.raises(TaskError, match=r"inputs of shapes \[16, 4, 8\], \[16\], \[1, 4\]\. Over a pipeline the first"):
        call(params, carry, mask[:1], keys)
