"""The cost model against closed formulas, and against the state of programs."""

import jax
import pytest

from engine.config.schema import MeshSpec
from engine.parallel.report import device_bytes
from engine.planning.cost import Cost, CostModel
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


@pytest.mark.parametrize(("precision", "held"), [("float32", 4), ("bfloat16", 2 + 2)])
def test_a_step_holds_whole_what_zero1_splits(precision, held):
    """The gradients before they are summed over the devices, and gathered parameters in bfloat16."""
    copies, split = (
        tiny.model().memory(tiny.candidate(data=8, zero1=zero1, precision=precision)) for zero1 in (False, True)
    )
    more = split.memory["temporary"] - copies.memory["temporary"]
    assert more == pytest.approx(held * tiny.numbers(), rel=0.02)


def test_traffic_is_that_of_the_formulas():
    """Copies all-reduce all gradients: 2 (n - 1) / n. FSDP gathers parameters and scatters gradients."""
    size = 4 * tiny.numbers()
    copies = tiny.model().cost(tiny.candidate(data=8))
    assert copies.traffic == {"data": pytest.approx(2 * 7 / 8 * size)}
    split = tiny.model().cost(tiny.candidate(fsdp=8))
    assert split.traffic["fsdp"] == pytest.approx(2 * 7 / 8 * size, rel=0.1)
    accumulated = tiny.model().cost(tiny.candidate(fsdp=8, accumulate=4))
    assert accumulated.traffic["fsdp"] == pytest.approx(4 * split.traffic["fsdp"])


def test_rows_of_a_device_divide_the_activations_and_the_products():
    one, two = (tiny.model().cost(tiny.candidate(data=n)) for n in (2, 4))
    assert one.memory["activations"] == pytest.approx(2 * two.memory["activations"])
    assert tiny.model().cost(tiny.candidate(data=2, accumulate=2)).memory["activations"] == pytest.approx(
        two.memory["activations"]
    )
    assert one.seconds["compute"] > two.seconds["compute"]


def test_offloaded_optimizer_is_in_the_memory_of_the_host():
    cost = tiny.model().memory(tiny.candidate(data=8, offload_optimizer=True))
    assert cost.memory["optimizer"] == 0 and cost.host == 8 * tiny.numbers()


def test_rows_for_experts_of_other_islands_all_cross_the_network():
    """16 experts over 2 hosts: half of the rows go to the other host, and 7 of 16 within it."""
    model = CostModel(tiny.traces(), tiny.machine("h100:2x8"))
    candidate = tiny.candidate(expert=16)
    cost = Cost(candidate)
    seconds = model.ring(candidate, "expert", 1e9, 0, cost, "all-to-all")
    assert seconds == pytest.approx(7 / 16 * 1e9 / model.machine.link + 1e9 / 2 / model.machine.network)
    assert cost.traffic["expert"] == pytest.approx(15 / 16 * 1e9)


def test_gradients_are_summed_over_every_axis_that_splits_rows_and_copies_parameters():
    size = 4 * tiny.numbers()
    for axis in ("context", "expert"):
        assert tiny.model().cost(tiny.candidate(**{axis: 8})).traffic == {axis: pytest.approx(2 * 7 / 8 * size)}
