"""A stack equals its layers in sequence, in every form of storage and application."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import ShardingError, TaskError
from engine.config.schema import MeshSpec
from engine.layers import Dropout, Stack, fold_in
from engine.layers.platforms.control_flow import UNROLLED_LAYERS
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from engine.parallel.rules import RULES, partition_spec
from engine.training.model import describe
from tests import zoo
from tests.layers import blocks

ONE = Layout()
REPEATS = blocks.make_layout(MeshSpec(pipeline=2, tensor=4), repeats=2)


@functools.cache
def eight_layers(by_repeat: bool) -> Stack:
    """Returns a stack for one device, or for a pipeline with repeats; not to be changed."""
    return blocks.stack(8, REPEATS if by_repeat else ONE)


def apply(stack: Stack, carry, mask, keys):
    return jax.jit(lambda carry, mask, keys: stack(carry, mask, rng=keys))(carry, mask, keys)


def test_stack_equals_a_loop_over_its_layers():
    stack = blocks.stack(3, ONE, dropout=0.4)
    graph, params = nnx.split(stack.layers)

    @jax.jit
    def loop(carry, mask, keys):
        for i in range(3):
            layer: Any = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], params))
            carry = layer(carry, mask, fold_in(keys, i))
        return carry

    zoo.assert_close(apply(stack, *blocks.batch(6)), loop(*blocks.batch(6)), 1e-6)


@pytest.mark.slow
def test_scanned_and_unrolled_stacks_have_equal_gradients():
    results = []
    for unroll in (False, True):
        call, params = blocks.gradient(blocks.stack(3, ONE, dropout=0.4, unroll=unroll), ONE)
        results.append(call(params, *blocks.batch(6)))
    zoo.assert_close(results[0], results[1], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_two_layers_in_an_iteration_keep_separate_arrays_for_the_backward_pass(remat):
    """TPUs compute two layers in an iteration if they gather weights; a joint array would cost a copy of each value."""
    layouts = [kind(mesh=make_mesh(MeshSpec(fsdp=8)), remat=remat) for kind in (Layout, blocks.LikeTpu)]
    module, batch = blocks.stack(6, layouts[0], dropout=0.4), blocks.batch(8)
    calls = [blocks.gradient(module, layout) for layout in layouts]
    for call, params in calls:
        zoo.assert_close(call(params, *batch), calls[0][0](params, *batch), 1e-5)
    call, params = calls[1]
    kept = str(call.trace(params, *batch).jaxpr)
    assert f"f32[3,8,{blocks.TIME},{blocks.WIDTH}]" in kept and "length=3" in kept
    assert f"f32[6,8,{blocks.TIME}" not in kept and f"f32[3,2,8,{blocks.TIME}" not in kept


def test_cpu_unrolls_few_layers_and_scans_many():
    def loops(count):
        call, params = blocks.gradient(blocks.stack(count, ONE, unroll=None), ONE)
        return call.lower(params, *blocks.batch(6)).as_text().count("stablehlo.while")

    assert loops(UNROLLED_LAYERS) == 0 < loops(UNROLLED_LAYERS + 1)


@pytest.mark.slow
@pytest.mark.optimized
def test_initial_layer_values_depend_only_on_seed_and_index():
    three, five = (blocks.stack(count, ONE) for count in (3, 5))
    for few, many in zip(*(jax.tree.leaves(nnx.state(stack)) for stack in (three, five)), strict=True):
        np.testing.assert_array_equal(few, many[:3])
    layers: Any = three.layers
    kernel = layers.up.kernel.get_value()
    assert len({float(x) for x in kernel[:, 0, 0]}) == 3


def test_parameters_have_a_leading_layer_dimension():
    model = describe(blocks.Classify())
    assert model.params["decoder/layers/up/kernel"].shape == (4, 8, 16)
    assert model.names["decoder/layers/up/kernel"] == ("layers", "embed", "mlp")
    assert model.names["decoder/layers/norm/scale"] == ("layers",)
    assert model.stacked == {path: 1 for path in model.params if path.startswith("decoder/")}


@pytest.mark.slow
@pytest.mark.optimized
def test_pipeline_with_repeats_stores_parameters_by_repeat():
    plain, by_repeat = nnx.state(eight_layers(False)), nnx.state(eight_layers(True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(by_repeat), strict=True):
        assert b.shape == (2, 4, *a.shape[1:])
        np.testing.assert_array_equal(a, b.reshape(a.shape))
    with active(REPEATS):
        model = describe(blocks.Classify())
    path = "decoder/layers/up/kernel"
    assert model.names[path] == ("repeats", "layers", "embed", "mlp")
    assert model.stacked[path] == 2
    assert REPEATS.mesh is not None
    spec = partition_spec(path, model.params[path].shape, model.names[path], RULES, REPEATS.mesh)
    assert tuple(spec) == (None, "pipeline", "fsdp", "tensor")


def test_repeats_have_no_effect_without_a_pipeline():
    layout = blocks.make_layout(MeshSpec(data=8), repeats=3)
    layers: Any = blocks.stack(4, layout).layers
    assert layers.up.kernel.get_value().shape == (4, 8, 16)


@pytest.mark.slow
@pytest.mark.optimized
def test_parameters_stored_by_repeat_run_on_one_device():
    zoo.assert_equal(*(apply(eight_layers(by_repeat), *blocks.batch(4)) for by_repeat in (True, False)))


class Modes(nnx.Module):
    """A layer with nnx.Dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x, rng):
        return self.dropout(x) * self.scale.get_value()


def test_train_and_eval_modes_reach_the_layers():
    stack = Stack(Modes, 2, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 64))
    stack.eval()
    zoo.assert_equal(stack(x), x)
    stack.train()
    kept = stack(x) != 0
    assert 0.1 < kept.mean() < 0.4  # two different masks keep a quarter; the same mask twice would keep half


def test_random_state_over_a_pipeline_raises_task_error():
    layout = blocks.make_layout(MeshSpec(pipeline=2, data=4))
    with active(layout):
        stack = Stack(Modes, 2, rngs=nnx.Rngs(0))
        with pytest.raises(TaskError, match=r"hold random state.*Use engine.layers.Dropout"):
            jax.eval_shape(stack, jnp.ones((16, 4)))


def test_layers_with_model_state_raise_task_error():
    with pytest.raises(TaskError, match=r"Stack of BatchNorm: mean is a BatchStat. Layers of a stack may hold only"):
        Stack(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 2, rngs=nnx.Rngs(0))


def test_nested_stack_raises_task_error():
    with pytest.raises(TaskError, match="which the stack itself adds"):
        Stack(lambda rngs: Stack(Modes, 2, rngs=rngs), 2, rngs=nnx.Rngs(0))


def test_layer_that_changes_the_carry_spec_raises_task_error():
    class Grows(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, x, rng):
            return x.astype(jnp.bfloat16) * self.w.get_value().sum().astype(jnp.bfloat16)

    with pytest.raises(TaskError, match=r"Grows received float32\[3, 2\] and returned bfloat16\[3, 2\]"):
        Stack(Grows, 2, rngs=nnx.Rngs(0))(jnp.ones((3, 2)))


def test_indivisible_layer_count_raises_sharding_error():
    with pytest.raises(ShardingError, match=r"mesh.pipeline = 4: a stack of 6 layers"):
        blocks.stack(6, blocks.make_layout(MeshSpec(pipeline=4, data=2)))
    with pytest.raises(ShardingError, match=r"sharding.repeats = 2: a stack of 4 layers over 4 stages"):
        blocks.stack(4, blocks.make_layout(MeshSpec(pipeline=4, data=2), repeats=2))


def test_dropout_keys_are_folded_by_layer():
    class Draws(nnx.Module):
        def __init__(self, rngs):
            self.dropout, self.zero = Dropout(0.5), nnx.Param(jnp.zeros(()))

        def __call__(self, x, rng):
            return self.dropout(x, rng) + self.zero.get_value()

    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.ones((3, 32))
    want = Dropout(0.5)(Dropout(0.5)(x, fold_in(keys, 0)), fold_in(keys, 1))
    zoo.assert_equal(Stack(Draws, 2, rngs=nnx.Rngs(0))(x, rng=keys), want)
