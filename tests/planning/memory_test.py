"""The memory of candidates against closed formulas, and against programs."""

import math
from typing import Any

import jax
import pytest

from engine.api.prepared import program, resolve_config
from engine.config import defaults
from engine.config.schema import MeshSpec, Sharding
from engine.parallel.memory import device_bytes
from engine.planning.cost import CostModel
from engine.planning.tracing import Traces
from tests import zoo
from tests.planning import tiny


def test_state_of_copies_is_that_of_the_formula():
    """float32 parameters and gradients, and two moments of Adam."""
    cost = tiny.model().memory(tiny.candidate(data=8))
    assert cost.memory["parameters"] == pytest.approx(4 * tiny.numbers(), abs=64)
    assert cost.memory["gradients"] == 4 * tiny.numbers()
    assert cost.memory["optimizer"] == 8 * tiny.numbers()


@pytest.mark.parametrize(
    ("axes", "layout", "precision"),
    [
        ({"fsdp": 8}, {}, "float32"),
        ({"data": 2, "fsdp": 4}, {}, "float32"),
        ({"data": 8}, {"zero1": True}, "float32"),
        ({"data": 8}, {"zero1": True}, "bfloat16"),
    ],
)
def test_state_of_a_mesh_is_that_of_the_program(axes, layout, precision):
    built = zoo.program(
        zoo.Classify(width=64), mesh=MeshSpec(**axes), batch_size=tiny.ROWS, precision=precision, layout=layout
    )
    cost = tiny.model().memory(tiny.candidate(**axes, **layout, precision=precision))
    for part, name in (("params", "parameters"), ("opt_state", "optimizer")):
        expected = sum(map(device_bytes, jax.tree.leaves(getattr(built.abstract_state, part))))
        assert cost.memory[name] == pytest.approx(expected, rel=0.02, abs=256)


@pytest.mark.parametrize(("precision", "held"), [("float32", 4), ("bfloat16", 2)])
def test_a_step_holds_whole_what_zero1_splits(precision, held):
    """The gradients in float32, and gathered parameters in bfloat16."""
    copies, split = (
        tiny.model().memory(tiny.candidate(data=8, zero1=zero1, precision=precision)) for zero1 in (False, True)
    )
    more = split.memory["temporary"] - copies.memory["temporary"]
    assert more == pytest.approx(held * tiny.numbers(), rel=0.02)


def test_tpus_hold_two_layers_of_what_zero1_splits():
    """The 8 layers have kernels of 64 x 256 and 256 x 64, and biases, which each device gathers whole."""
    found = {}
    for target in ("v5e:2x4", "h100:1x8"):
        model = CostModel(tiny.deep_model().traces, tiny.machine(target))
        one, split = (
            model.memory(tiny.candidate(data=8, zero1=zero1, precision="bfloat16")).memory["temporary"]
            for zero1 in (False, True)
        )
        found[target] = split - one
    layer, biases = 2 * 2 * tiny.WIDTH * tiny.HIDDEN, 2 * tiny.DEPTH * (tiny.WIDTH + tiny.HIDDEN)
    assert found["v5e:2x4"] - biases == pytest.approx(2 * layer, rel=0.05)
    assert found["h100:1x8"] == pytest.approx(tiny.DEPTH * layer + biases, rel=0.05)


def test_batches_of_all_dispatches_on_a_device_are_in_its_memory():
    """Two dispatches wait behind the one that runs; a loop over several steps has its batches as one more array."""
    batch = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tiny.program().abstract_batch))
    for k, copies in ((1, 3), (4, 3 * 4 + 4)):
        cost = tiny.model().memory(tiny.candidate(data=2, tensor=4, steps_per_dispatch=k))
        assert cost.memory["batch"] == copies * batch / 2


@pytest.mark.slow
def test_batches_of_the_running_dispatch_are_those_of_the_compiled_program():
    """A wide batch and a small model: arguments are K batches, temporary arrays are at least the copy of them."""
    built = zoo.program(zoo.Classify(width=16), mesh=MeshSpec(data=8), batch_size=2**16)
    batch = sum(map(device_bytes, jax.tree.leaves(built.abstract_batch)))
    one, four = (built.trace(k).lower().compile().memory_analysis() for k in (1, 4))
    assert one is not None and four is not None
    assert four.argument_size_in_bytes - one.argument_size_in_bytes == pytest.approx(3 * batch, rel=0.1)
    assert four.temp_size_in_bytes - one.temp_size_in_bytes == pytest.approx(4 * batch, rel=0.3)


def test_offloaded_optimizer_is_in_the_memory_of_the_host():
    cost = tiny.model().memory(tiny.candidate(data=8, offload_optimizer=True))
    assert cost.memory["optimizer"] == 0 and cost.host == 8 * tiny.numbers()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_activations_of_a_pipeline_are_those_of_the_compiled_program(schedule):
    """4 stages and 16 microbatches: "gpipe" keeps the layers of 19 ticks, "1f1b" those of one and 8 inputs."""
    rows, pipeline = 4096, {"microbatches": 16, "schedule": schedule}
    built = zoo.program(tiny.Deep(), mesh=MeshSpec(data=2, pipeline=4), batch_size=rows, layout=pipeline)
    compiled = built.trace(1).lower().compile().memory_analysis()
    assert compiled is not None
    memory = tiny.deep_model(rows).memory(tiny.candidate(data=2, pipeline=4, **pipeline)).memory
    predicted = memory["gradients"] + memory["activations"] + memory["temporary"]
    assert predicted == pytest.approx(compiled.temp_size_in_bytes, rel=0.15)


def test_offloaded_activations_are_in_the_memory_of_the_host():
    model, rows = tiny.deep_model(), tiny.DEEP_ROWS / 8
    costs = {remat: model.cost(tiny.candidate(data=8, remat=remat)) for remat in ("full", "offload:hidden")}
    moved = tiny.DEPTH * rows * tiny.HIDDEN * 4
    assert costs["offload:hidden"].host == pytest.approx(moved, rel=0.2)
    assert costs["offload:hidden"].memory["activations"] == costs["full"].memory["activations"]
    seconds = costs["offload:hidden"].seconds
    assert seconds["compute"] < costs["full"].seconds["compute"]
    during = model.machine.overlap * seconds["compute"]
    host = costs["offload:hidden"].host
    assert seconds["host traffic"] == pytest.approx(max(0.0, 2 * host / model.machine.host_bandwidth - during))


@pytest.mark.slow
def test_head_of_a_loss_in_chunks_is_held_whole_with_the_sum_of_its_gradient():
    """In bfloat16 a device holds the gathered head, and in float32 the head and its gradient: 2 + 4 + 4 bytes."""
    c = defaults()
    c.task = dict(
        target="convoy_zoo.models.decoder.LanguageModel", vocabulary=32768, width=64, hidden=64, depth=2, heads=2
    )
    c.data = dict(target="tests.planning.tiny.tokens", length=2048)
    c.train.global_batch_size, c.train.precision = 8, "bfloat16"
    config = resolve_config(c)
    built, _ = program(config, jax.devices()[:1])
    traces = Traces(built, config.sharding, config.data.prefetch, {"bfloat16": 100.0}, 2, print)
    model = CostModel(traces, tiny.machine("h100:1x8"))
    split, whole = (
        model.memory(tiny.candidate(**axes, precision="bfloat16")).memory["temporary"]
        for axes in ({"fsdp": 8}, {"data": 8})
    )
    assert split >= 10 * 32768 * 64 and whole >= 8 * 32768 * 64


@pytest.mark.parametrize(("axes", "zero1"), [({"fsdp": 8}, False), ({"data": 4, "fsdp": 2}, True)])
def test_state_of_another_shape_is_counted_as_it_is_split(axes, zero1):
    """Rows and columns of Adafactor for 8 layers of 64 x 256."""
    settings: Any = {"target": "optax.adafactor", "arguments": {"min_dim_size_to_factor": 16}}
    one = zoo.program(tiny.Deep(), batch_size=tiny.ROWS, devices=jax.devices()[:1], **settings)
    traces = Traces(one, Sharding(), 2, {"float32": 10.0}, 4, print)
    candidate = tiny.candidate(**axes, zero1=zero1)
    _, _, found = CostModel(traces, tiny.machine("h100:1x8")).stored(candidate)
    built = zoo.program(tiny.Deep(), mesh=MeshSpec(**axes), batch_size=tiny.ROWS, layout={"zero1": zero1}, **settings)
    factored = [x for x in jax.tree.leaves(built.abstract_state.opt_state) if x.ndim]
    assert found == sum(map(device_bytes, factored))
