"""The cost model against closed formulas."""

import copy
import dataclasses

import pytest

from engine.compile.collectives import Collective
from engine.compile.step_costs import Compiled
from engine.config.schema import Sharding
from engine.planning.candidates import Attention
from engine.planning.cost import CostModel
from engine.planning.memory import Cost
from engine.planning.tracing import Traces
from engine.planning.work import Work
from tests.planning import tiny


def test_traffic_is_that_of_the_formulas():
    """Copies all-reduce all gradients: 2 (n - 1) / n. FSDP gathers parameters and scatters gradients."""
    size = 4 * tiny.numbers()
    copies = tiny.model().cost(tiny.candidate(data=8))
    assert copies.traffic == {"data": pytest.approx(2 * 7 / 8 * size)}
    split = tiny.model().cost(tiny.candidate(fsdp=8))
    assert split.traffic["fsdp"] == pytest.approx(2 * 7 / 8 * size, rel=0.1)
    accumulated = tiny.model().cost(tiny.candidate(fsdp=8, accumulate=4))
    assert accumulated.traffic["fsdp"] == pytest.approx(4 * split.traffic["fsdp"])


def test_gradients_are_summed_once_a_step_unless_accumulation_is_approximate():
    program = copy.copy(tiny.program())
    program.spec = dataclasses.replace(program.spec, approximate_accumulation=True)
    approximate = Traces(program, Sharding(), 2, tiny.traces().balance, 4, print)
    sum_of_all = 2 * 7 / 8 * 4 * tiny.numbers()
    for traces, sums in ((tiny.traces(), 1), (approximate, 4)):
        model = CostModel(traces, tiny.machine("h100:1x8"))
        assert model.cost(tiny.candidate(data=8, accumulate=4)).traffic == {"data": pytest.approx(sums * sum_of_all)}
        once, split = (model.cost(tiny.candidate(data=2, fsdp=4, accumulate=n)).traffic["data"] for n in (1, 4))
        assert split == pytest.approx(sums * once)


def test_zero1_gathers_float32_parameters_once_a_step():
    """A step gathers the updated parameters. In half precision, it gathers them in both passes (8 H100, 16 v5e)."""
    size = 4 * tiny.numbers()
    for accumulate in (1, 4):
        cost = tiny.model().cost(tiny.candidate(data=8, zero1=True, accumulate=accumulate))
        assert cost.traffic["data"] == pytest.approx(7 / 8 * size * (accumulate + 1), rel=0.02)
        half = tiny.model().cost(tiny.candidate(data=8, zero1=True, accumulate=accumulate, precision="bfloat16"))
        assert half.traffic["data"] == pytest.approx(7 / 8 * size / 2 * 3 * accumulate, rel=0.02)
        on_tpus = CostModel(tiny.traces(), tiny.machine("v5e:2x4")).cost(half.candidate)
        assert on_tpus.traffic["data"] == pytest.approx(half.traffic["data"], rel=0.02)


def test_rows_of_a_device_divide_the_activations_and_the_products():
    one, two = (tiny.model().cost(tiny.candidate(data=n)) for n in (2, 4))
    assert one.memory["activations"] == pytest.approx(2 * two.memory["activations"])
    assert tiny.model().cost(tiny.candidate(data=2, accumulate=2)).memory["activations"] == pytest.approx(
        two.memory["activations"]
    )
    assert one.seconds["compute"] > two.seconds["compute"]


def test_rows_for_experts_of_other_slices_all_cross_the_network():
    """16 experts over 2 hosts: half of the rows go to the other host, and 7 of 16 within it."""
    model = CostModel(tiny.traces(), tiny.machine("h100:2x8"))
    candidate = tiny.candidate(expert=16)
    cost = Cost(candidate)
    seconds = model.ring(candidate, "expert", 1e9, 0, cost, "all-to-all")
    assert seconds == pytest.approx(7 / 16 * 1e9 / model.machine.link + 1e9 / 2 / model.machine.network)
    assert cost.traffic["expert"] == pytest.approx(15 / 16 * 1e9)


def test_compiled_collectives_have_the_time_of_their_kind():
    """Over 16 devices in 2 hosts a sum sends a byte of 15 to the other host, and an all-to-all 8 of 15."""
    model = CostModel(tiny.traces(), tiny.machine("h100:2x8"))
    formula = model.cost(tiny.candidate(expert=16))
    link, network, latency = model.machine.link, model.machine.network, model.machine.latency
    for kind, far in (("all-reduce", 1 / 15), ("all-to-all", 8 / 15), ("collective-permute", 1.0)):
        found = Collective(kind, ("expert",), 16, 1, 10**9, 10**9)
        cost = model.with_compiled(formula, Compiled({"batch": 0}, 0, [found]))
        assert cost.exposed["expert"] == pytest.approx(1e9 * ((1 - far) / link + far / network) + latency)


def test_gradients_are_summed_over_every_axis_that_splits_rows_and_copies_parameters():
    size = 4 * tiny.numbers()
    for axis in ("context", "expert"):
        assert tiny.model().cost(tiny.candidate(**{axis: 8})).traffic == {axis: pytest.approx(2 * 7 / 8 * size)}


def test_layers_of_a_pipeline_run_forward_twice_more_in_1f1b():
    """The results and the inputs of the later stages need a forward pass each."""
    model, settings = tiny.deep_model(), {"data": 2, "pipeline": 4, "microbatches": 16}
    once, again = (model.cost(tiny.candidate(**settings, schedule=kind)) for kind in ("gpipe", "1f1b"))
    flops = [model.work(cost.candidate).flops for cost in (once, again)]
    forward = tiny.DEPTH * 2 * (2 * tiny.DEEP_ROWS / 2 * tiny.WIDTH * tiny.HIDDEN)  # two products on half of the rows
    assert flops[1] - flops[0] == pytest.approx(2 * forward)
    assert again.seconds["compute"] > once.seconds["compute"]
    assert once.bubble == pytest.approx(3 / 19)
    assert again.bubble == pytest.approx(1 - 5 * 16 / (19 + 4 * (19 + 3)))


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_stage_gathers_its_parameters_once_where_they_fit(kind):
    """Otherwise each of 19 ticks or more gathers and scatters them."""
    model = tiny.deep_model()
    candidate = tiny.candidate(fsdp=2, pipeline=4, microbatches=16, schedule=kind)
    small = CostModel(model.traces, dataclasses.replace(model.machine, memory=2**18))
    once, ticks = (found.cost(candidate) for found in (model, small))
    stage = 4 * tiny.DEPTH / 4 * 2 * tiny.WIDTH * tiny.HIDDEN
    assert once.traffic["fsdp"] == pytest.approx(2 * stage / 2, rel=0.05)
    assert ticks.traffic["fsdp"] > 15 * once.traffic["fsdp"]
    layer = stage / (tiny.DEPTH / 4)
    assert once.memory["temporary"] - ticks.memory["temporary"] == pytest.approx(2 * stage - 2 * layer, rel=0.05)


def test_groups_of_layers_shrink_the_bubble_and_pass_the_ring_more_often():
    model, settings = tiny.deep_model(), {"data": 2, "pipeline": 4, "microbatches": 16}
    one, two = (model.cost(tiny.candidate(**settings, repeats=repeats)) for repeats in (1, 2))
    assert (one.bubble, two.bubble) == (pytest.approx(3 / 19), pytest.approx(3 / 35))
    carry = tiny.DEEP_ROWS / 2 * tiny.WIDTH * 4
    assert two.traffic["pipeline"] - one.traffic["pipeline"] >= 2 * carry


def test_all_to_all_exchanges_the_parts_of_queries_keys_values_and_results(monkeypatch):
    """Each way and back, in both passes. 2 heads of keys are repeated for 8 devices."""
    queries, keys, gradients = 1e6, 1e5, 2 * 7 / 8 * 4 * tiny.numbers()
    monkeypatch.setattr(CostModel, "work", lambda model, candidate: Work(queries=queries, keys=keys))
    model = CostModel(tiny.traces(), tiny.machine("h100:1x8"))
    model.attentions = [Attention(positions=64, heads=8, kv_heads=2, causal=True)]
    candidate = dataclasses.replace(tiny.candidate(context=8), context="all-to-all")
    cost = model.cost(candidate)
    assert cost.traffic["context"] == pytest.approx(7 / 8 * 2 * (2 * queries + 4 * keys) / 8 + gradients)


def test_ring_of_attention_runs_its_kernels_again_for_each_part_of_the_keys(monkeypatch):
    """2 + 15 products where attention without a ring has 2 + 5."""
    monkeypatch.setattr(CostModel, "work", lambda model, candidate: Work(cost=7.0, attention=7.0))
    model = CostModel(tiny.traces(), tiny.machine("h100:1x8"))
    model.attentions = [Attention(64, 8, 8, causal=True)]
    ring = tiny.candidate(context=8, precision="bfloat16")
    others = dataclasses.replace(ring, context="all-to-all"), dataclasses.replace(ring, precision="float32")
    seconds = [model.computation(candidate) for candidate in (ring, *others)]
    assert seconds == pytest.approx([17 / 7 * seconds[1], seconds[1], seconds[1]])
