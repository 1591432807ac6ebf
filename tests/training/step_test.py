"""The train step: weighted sums, the guard, random keys per example, and K steps in one call."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Mean, Task
from engine.config.schema import Group, MeshSpec
from engine.data.batch import Batch
from engine.parallel.memory import HOST_MEMORY
from engine.training.state import LOSS_WINDOW
from engine.training.step import MIN_LOSSES, is_spike
from engine.training.step_spec import BAD_EXAMPLES, ENGINE_METRICS
from tests import zoo

pytestmark = pytest.mark.slow

# Each mesh with one model, and both meshes of two axes with the model whose kernels are split along both.
MESHES = [MeshSpec(data=8), MeshSpec(fsdp=8), MeshSpec(data=2, fsdp=4), MeshSpec(fsdp=4, tensor=2)]
CASES = list(zip(("mlp", "cnn", "decoder", "decoder"), MESHES, strict=True))


@pytest.mark.optimized
@pytest.mark.parametrize("model", ["cnn", "decoder"])
def test_k_steps_in_one_call_equal_k_single_steps_bitwise(model):
    program = zoo.program(zoo.Classify(model, dropout=0.1), ema_decay=0.9)
    batches = zoo.batches(4)
    single, together = zoo.run(program, batches), zoo.run(program, batches, k=2)
    zoo.assert_equal(single, together)


@functools.cache
def losses(model, mesh):
    """Returns the losses of three steps."""
    return zoo.losses(zoo.run(zoo.program(zoo.Classify(model, dropout=0.1), mesh=mesh), zoo.batches(3))[1])


@pytest.mark.parametrize(("model", "mesh"), CASES, ids=str)
def test_eight_devices_give_the_losses_of_one(model, mesh):
    np.testing.assert_allclose(losses(model, mesh), losses(model, None), rtol=1e-6)


def test_microbatches_of_a_decoder_equal_the_full_batch():
    # With sgd the update is proportional to the gradient.
    settings: dict[str, Any] = dict(batch_size=32, target="optax.sgd", clip_norm=None)
    task, batches = zoo.Classify("decoder", dropout=0.1), zoo.batches(2, 32)
    full, _ = zoo.run(zoo.program(task, **settings), batches)
    parts, _ = zoo.run(zoo.program(task, mesh=MeshSpec(data=4, tensor=2), accumulate=4, **settings), batches)
    zoo.assert_close(full.params, parts.params, 1e-6)


@pytest.mark.optimized
def test_second_run_from_the_same_seed_is_bitwise_equal():
    task, batches = zoo.Classify("cnn", dropout=0.1), zoo.batches(3)
    zoo.assert_equal(zoo.run(zoo.program(task), batches), zoo.run(zoo.program(task), batches))


def test_each_step_draws_new_random_numbers():
    program = zoo.program(zoo.Classify(dropout=0.5), target="optax.sgd", learning_rate=0.0)
    _, metrics = zoo.run(program, zoo.batches(1) * 3)
    assert len(set(zoo.losses(metrics).tolist())) == 3


def test_batch_of_weight_zero_changes_no_parameter():
    batch = zoo.batches(1)[0]
    batch["valid"][:] = 0
    program = zoo.program(zoo.Classify(), target="optax.sgd")
    before = jax.device_get(program.init().params)
    state, metrics = zoo.run(program, [batch])
    zoo.assert_equal(state.params, before)
    assert metrics[0, program.metric_names.index("skipped"), 0] == 0


@pytest.mark.parametrize(("model", "branch"), [("mlp", True), ("cnn", False)], ids=["on-cpu", "elsewhere"])
def test_nonfinite_loss_skips_the_whole_update(model, branch):
    program = zoo.program(zoo.Classify(model), ema_decay=0.9)
    program.spec = dataclasses.replace(program.spec, branch=branch)
    good, bad = zoo.batches(2)
    bad["x"][3] = np.nan
    bad["valid"][3] = 1
    once, _ = zoo.run(program, [good])
    twice, metrics = zoo.run(program, [good, bad])
    assert metrics[:, program.metric_names.index("skipped"), 0].tolist() == [0, 1]
    assert int(twice.step) == 2
    zoo.assert_equal(dataclasses.replace(twice, step=once.step), once)


def test_nonfinite_gradient_with_finite_loss_skips_the_update():
    class Edge(zoo.Classify):
        def loss(self, model, batch, rng):
            return Loss.of(jnp.sqrt(model(batch["x"], rng)[:, 0] * 0))

    program = zoo.program(Edge())
    before = jax.device_get(program.init().params)
    state, metrics = zoo.run(program, zoo.batches(1))
    assert zoo.losses(metrics).tolist() == [0]
    assert metrics[0, program.metric_names.index("skipped"), 0] == 1
    zoo.assert_equal(state.params, before)


@pytest.mark.optimized
def test_offloaded_optimizer_gives_equal_results():
    task, mesh = zoo.Classify(), MeshSpec(data=2, fsdp=4)
    batches = zoo.batches(3)
    batches.insert(1, {**batches[0], "x": np.full_like(batches[0]["x"], np.nan)})  # the guard skips this update
    expected = zoo.run(zoo.program(task, mesh=mesh), batches, k=2)
    state, metrics = zoo.run(zoo.program(task, mesh=mesh, layout={"offload_optimizer": True}), batches, k=2)
    zoo.assert_equal((state, metrics), expected)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)} == {HOST_MEMORY}
    assert HOST_MEMORY not in {x.sharding.memory_kind for x in jax.tree.leaves(state.params)}


def test_average_follows_the_weights():
    batches = zoo.batches(2)
    program = zoo.program(zoo.Classify(), ema_decay=0.75)
    first = jax.device_get(program.init().params)
    one, _ = zoo.run(program, batches[:1])
    zoo.assert_close(one.ema, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, first, one.params), 1e-7)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32():
    seen = {}

    @dataclasses.dataclass
    class Spy(zoo.Classify):
        full_precision = ("valid",)

        def loss(self, model, batch, rng):
            seen.update(kernel=model.head.kernel.dtype, x=batch["x"].dtype, valid=batch["valid"].dtype)
            return super().loss(model, batch, rng)

    program = zoo.program(Spy(), precision="bfloat16")
    state, metrics = zoo.run(program, zoo.batches(3))
    assert seen == {"kernel": jnp.bfloat16, "x": jnp.bfloat16, "valid": jnp.float32}
    assert {x.dtype for x in state.params.values()} == {jnp.float32.dtype}
    _, full = zoo.run(zoo.program(zoo.Classify()), zoo.batches(3))
    np.testing.assert_allclose(zoo.losses(metrics), zoo.losses(full), rtol=0.02)


def test_model_state_keeps_its_dtype_in_bfloat16():
    class Latest(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.latest = zoo.Mlp(8, 0.0, rngs), nnx.BatchStat(jnp.zeros(4))

        def __call__(self, x, rng=None):
            logits = self.inner(x, rng)
            self.latest.set_value(logits.mean(0))
            return logits

    class Task(zoo.Classify):
        def build(self, rngs):
            return Latest(rngs)

    state, _ = zoo.run(zoo.program(Task(), precision="bfloat16"), zoo.batches(1))
    assert state.model_state["latest"].dtype == jnp.float32
    assert float(abs(state.model_state["latest"]).max()) > 0


def test_frozen_parameters_do_not_move_and_have_no_optimizer_state():
    program = zoo.program(zoo.Classify(), trainable="^head/")
    before = jax.device_get(program.init().params)
    state, _ = zoo.run(program, zoo.batches(2))
    moved = {path for path, x in before.items() if not np.array_equal(x, state.params[path])}
    assert moved == {"head/kernel", "head/bias"}
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 3 * (32 * 4 + 4)


def test_learning_rates_of_all_groups_are_those_of_the_updates_that_were_made():
    groups = {"head": Group(match="^head/", learning_rate=0.5, schedule="constant"), "first": Group(match="^hidden/0")}
    groups["first"] = dataclasses.replace(groups["first"], every=2, learning_rate_scale=0.1)
    batches = zoo.batches(6)
    batches[1] = {**batches[1], "x": np.full_like(batches[1]["x"], np.nan)}  # the guard skips this update
    program = zoo.program(zoo.Classify(width=4), schedule="linear", learning_rate=0.01, groups=groups)
    names = ["skipped", "learning_rate", "learning_rate/head", "learning_rate/first"]
    assert program.metric_names[-2:] == ("learning_rate/first", "learning_rate/head")
    _, metrics = zoo.run(program, batches)
    found = np.stack([metrics[:, program.metric_names.index(name), 0] for name in names])
    rates = [0.01, 0.009, 0.009, 0.008, 0.007, 0.006]
    later = [0.0009, 0.0009, 0.0009, 0.0007, 0.0007, 0.0005]
    np.testing.assert_allclose(found, [[0, 1, 0, 0, 0, 0], rates, [0.5] * 6, later], rtol=1e-6)
    one = zoo.program(zoo.Classify(width=4), schedule="linear", groups={"all": Group(match="")})
    assert one.metric_names[-1] == "learning_rate/all"
    _, metrics = zoo.run(one, batches[:3])
    assert metrics[:, -1, 0].tolist() == pytest.approx(rates[:3])


def test_learning_rate_metric_is_the_rate_of_the_step():
    program = zoo.program(zoo.Classify(), schedule="linear")
    _, metrics = zoo.run(program, zoo.batches(2))
    assert metrics[:, program.metric_names.index("learning_rate"), 0].tolist() == pytest.approx([0.01, 0.009])


def test_task_metrics_come_before_engine_metrics():
    program = zoo.program(zoo.Classify())
    assert program.metric_names == ("loss", "accuracy", *ENGINE_METRICS)


def test_scalar_loss_is_treated_as_a_sum():
    class Sums(zoo.Classify):
        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            return Loss(loss.total.sum(), loss.weight.sum(), {"one": Mean(jnp.float32(3), jnp.float32(3))})

    batches = zoo.batches(2)
    by_row, _ = zoo.run(zoo.program(zoo.Classify()), batches)
    summed, metrics = zoo.run(zoo.program(Sums()), batches)
    zoo.assert_close(by_row.params, summed.params, 1e-7)
    assert metrics[0, 1].tolist() == [3, 3]


def test_batch_can_be_any_pytree():
    class Pairs(Task):
        def build(self, rngs):
            return nnx.Linear(3, 1, rngs=rngs)

        def loss(self, model, batch, rng):
            (x, y), extra = batch
            return Loss.of((model(x)[:, 0] - y + extra["shift"]) ** 2)

    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    program = zoo.program(Pairs(), example=((shape(3), shape()), {"shift": shape()}), batch_size=4)
    batch = ((np.ones((4, 3), np.float32), np.ones(4, np.float32)), {"shift": np.zeros(4, np.float32)})
    _, metrics = zoo.run(program, [batch] * 3)
    assert zoo.losses(metrics)[-1] < zoo.losses(metrics)[0]


def unreadable(batch, *bad):
    weight = np.ones(len(batch["y"]), np.float32)
    weight[list(bad)] = 0
    return Batch(batch, weight)


@pytest.mark.parametrize("mesh", [None, MeshSpec(data=2, fsdp=4)], ids=["one-device", "eight-devices"])
def test_row_of_weight_zero_is_left_out_and_counted(mesh):
    program = zoo.program(zoo.Classify(), mesh=mesh, accumulate=2, skip_bad=True)
    found, metrics = zoo.run(program, [unreadable(batch, 3, 8) for batch in zoo.batches(2)])
    assert program.metric_names[-1] == BAD_EXAMPLES
    assert metrics[:, -1].tolist() == [[2, 1], [2, 1]]
    without = zoo.batches(2)
    for batch in without:
        batch["valid"][[3, 8]] = 0
    expected, plain = zoo.run(zoo.program(zoo.Classify(), mesh=mesh, accumulate=2), without)
    zoo.assert_close(found.params, expected.params, 1e-6)
    np.testing.assert_allclose(metrics[:, :-1], plain, rtol=1e-5)
    assert program.warnings == zoo.program(zoo.Classify(), mesh=mesh).warnings


def test_scalar_loss_with_skip_bad_gives_a_warning():
    class Whole(zoo.Classify):
        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            return Loss(loss.total.sum(), loss.weight.sum())

    program = zoo.program(Whole(), skip_bad=True)
    _, metrics = zoo.run(program, [unreadable(zoo.batches(1)[0], 3)])
    assert metrics[0, -1].tolist() == [1, 1]
    assert any("the loss of Whole is one number per batch" in text for text in program.warnings)


@pytest.mark.optimized
def test_skip_mask_skips_the_update_whatever_its_loss():
    program = zoo.program(zoo.Classify(), ema_decay=0.9)
    batches = tuple(jax.device_put(zoo.batch(x), program.spec.batch_sharding) for x in zoo.batches(2))
    state, metrics = program.steps(2)(program.init(), batches, program.skip_mask((True, False)))
    assert np.asarray(metrics)[:, program.metric_names.index("skipped"), 0].tolist() == [1, 0]
    nan = zoo.batches(2)
    nan[0]["x"][:] = np.nan
    expected, _ = zoo.run(program, nan, k=2)
    zoo.assert_equal(state, expected)


def test_spike_is_a_loss_above_a_multiple_of_the_window_median():
    window = np.full(LOSS_WINDOW, np.nan, np.float32)
    window[:MIN_LOSSES] = np.arange(1, MIN_LOSSES + 1)  # the lower median is 8
    assert not is_spike(jnp.float32(15.9), jnp.asarray(window), 2.0)
    assert is_spike(jnp.float32(16.1), jnp.asarray(window), 2.0)
    assert not is_spike(jnp.float32(-4.1), jnp.asarray(-window), 2.0)  # the median is -9, the limit 0
    assert is_spike(jnp.float32(1.0), jnp.asarray(-window), 2.0)
    window[0] = np.nan
    assert not is_spike(jnp.float32(1e9), jnp.asarray(window), 2.0)
