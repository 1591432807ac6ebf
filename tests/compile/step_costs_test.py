import math

import jax
import pytest

from engine.compile.step_costs import describe, read
from engine.config.schema import MeshSpec
from engine.planning import machine as machines
from engine.planning.cost import CostModel
from tests import zoo
from tests.planning import tiny


def test_compiled_step_states_its_memory_by_part_and_replaces_the_formula():
    program = zoo.program(zoo.Classify(width=64), mesh=MeshSpec(fsdp=8), batch_size=512)  # XLA then moves parameters
    executable = program.trace(1).lower().compile()
    compiled = read(program, executable)
    memory = executable.memory_analysis()
    assert memory is not None
    state = compiled.memory["parameters"] + compiled.memory["optimizer"] + compiled.memory["batch"]
    assert state == pytest.approx(memory.argument_size_in_bytes, rel=0.1)
    assert compiled.memory["gradients"] + compiled.memory["activations and temporary arrays"] == (
        memory.temp_size_in_bytes
    )
    text = describe(compiled, 1000)
    assert "memory of a device during a step" in text and "it does not fit by" in text
    model = tiny.model()
    formula = model.cost(tiny.candidate(fsdp=8))
    cost = model.with_compiled(formula, compiled)
    assert cost.bytes == compiled.bytes and cost.compiled and not formula.compiled
    assert set(cost.traffic) == {"fsdp"}
    # XLA:CPU gathers parameters and sums gradients where the formula for GPUs scatters them: 3 to 2.
    assert cost.traffic["fsdp"] == pytest.approx(1.5 * formula.traffic["fsdp"], rel=0.15)
    assert math.isfinite(cost.step_s) and jax.device_count() == 8


def test_a_cpu_takes_its_time_from_the_compiled_step():
    program = zoo.program(zoo.Classify(width=64), mesh=MeshSpec(data=8), batch_size=64)
    compiled = read(program, program.trace(1).lower().compile())
    machine = machines.of_devices(jax.devices())
    model = CostModel(tiny.traces(), machine)
    formula = model.cost(tiny.candidate(data=8))
    cost = model.with_compiled(formula, compiled)
    flops = sum(i.times * i.flops for i in compiled.instructions)
    assert cost.seconds["compute"] == compiled.seconds(machine.f32, machine.bandwidth) > flops / machine.f32 > 0
    assert cost.seconds["bubble"] == cost.seconds["update"] == 0
    temporary = compiled.memory["gradients"] + compiled.memory["activations and temporary arrays"]
    assert cost.seconds["new memory"] == pytest.approx(temporary * machine.new_memory)
