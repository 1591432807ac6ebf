"""The compiled programs: compilation, its time, FLOPs, and the collectives for each mesh."""

import re

import jax
import pytest

from engine.compile.report import describe_frozen
from engine.config.schema import MeshSpec
from tests import zoo


def collectives(program) -> set[str]:
    text = program.steps(1).as_text()
    return set(re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text))


def test_steps_are_compiled_once():
    program = zoo.program(zoo.Classify())
    assert program.steps(1) is program.steps(1)
    assert program.compile_s > 0


def test_compile_time_accumulates():
    program = zoo.program(zoo.Classify())
    times = [0.0]
    for _ in range(5):
        program.init()
        times.append(program.compile_s)
    assert times == sorted(set(times))


@pytest.mark.slow
def test_init_passes_given_weights_to_optimizer_and_average():
    program = zoo.program(
        zoo.Classify(), ema_decay=0.9, mesh=MeshSpec(fsdp=8), target="optax.contrib.schedule_free_adamw"
    )
    random = program.init()
    given = jax.device_put(random.params["head/kernel"] + 1, random.params["head/kernel"].sharding)
    state = program.init({"head/kernel": given})
    assert jax.tree.structure(state) == jax.tree.structure(random)
    for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
    assert (state.params["head/kernel"] == given).all()
    assert state.ema is not None
    assert (state.ema["head/kernel"] == given).all()
    assert (state.params["hidden/0/kernel"] == random.params["hidden/0/kernel"]).all()
    means = [x for x in jax.tree.leaves(state.opt_state) if x.shape == given.shape and (x == given).all()]
    assert means, "the optimizer keeps the random weights"
    batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
    program.steps(1)(state, (batch,), program.skip_mask((False,)))  # donates each array once


def test_step_donates_its_input_state():
    program = zoo.program(zoo.Classify())
    state = program.init()
    batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
    program.steps(1)(state, (batch,), program.skip_mask((False,)))
    assert state.params["head/kernel"].is_deleted()


def test_data_parallel_has_only_all_reduce():
    assert collectives(zoo.program(zoo.Classify(width=64), mesh=MeshSpec(data=8))) == {"all-reduce"}


def test_fsdp_gathers_parameters():
    assert "all-gather" in collectives(zoo.program(zoo.Classify(width=64), mesh=MeshSpec(fsdp=8)))


def test_hardware_flops_are_counted_over_all_devices():
    program = zoo.program(zoo.Classify(width=64), batch_size=256)
    assert program.hardware_flops_per_step == 0
    program.trace(1)
    numbers = zoo.SIZE * 64 + 64 * 64 + 64 * 4
    first_layer = zoo.SIZE * 64  # no gradient of the input is computed
    expected = 2 * 256 * (3 * numbers - first_layer)
    assert program.hardware_flops_per_step == program.flops_per_step == expected
    eight = zoo.program(zoo.Classify(width=64), batch_size=256, mesh=MeshSpec(data=8))
    eight.trace(1)
    assert eight.hardware_flops_per_step == expected
    parts = zoo.program(zoo.Classify(width=64), batch_size=256, accumulate=4)
    parts.trace(2)
    assert parts.hardware_flops_per_step == expected


def test_convolutions_on_cpu_unroll_steps_and_disable_branching():
    cnn, mlp = zoo.program(zoo.Classify("cnn")).spec, zoo.program(zoo.Classify("mlp")).spec
    assert cnn.unroll and not cnn.branch
    assert mlp.branch and not mlp.unroll
    assert "while" in zoo.program(zoo.Classify("mlp")).trace(4).lower().as_text()
    assert "while" not in zoo.program(zoo.Classify("cnn")).trace(4).lower().as_text()


def test_frozen_parameters_cost_no_gradient_no_state_and_no_memory():
    """The gradient of a matrix is a third of its FLOPs; the gradient of its input is another third."""
    programs = [zoo.program(zoo.Classify(width=64), batch_size=16, trainable=t) for t in ("", "^head/", "^hidden/0/")]
    for program in programs:
        program.trace(1)
    first, second, head = (2 * 16 * rows * columns for rows, columns in ((16, 64), (64, 64), (64, 4)))
    full, top, bottom = (program.flops_per_step for program in programs)
    assert full == 2 * first + 3 * second + 3 * head
    assert top == first + second + 2 * head
    assert bottom == 2 * first + 2 * second + 2 * head
    sizes = [sum(x.size for x in jax.tree.leaves(p.abstract_state.opt_state) if x.ndim) for p in programs]
    assert sizes[1:] == [2 * (64 * 4 + 4), 2 * (16 * 64 + 64)]
    report = [describe_frozen(program.spec.model.params, program.spec.model.trained) for program in programs]
    assert report[0] is None
    assert report[1] == (
        "frozen, without gradient and optimizer state: 5,248 of 5,508 numbers: hidden/*/bias, hidden/*/kernel"
    )
