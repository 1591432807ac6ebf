"""The cost model against closed formulas."""

import pytest

from engine.planning.cost import CostModel
from engine.planning.memory import Cost
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


def test_rows_of_a_device_divide_the_activations_and_the_products():
    one, two = (tiny.model().cost(tiny.candidate(data=n)) for n in (2, 4))
    assert one.memory["activations"] == pytest.approx(2 * two.memory["activations"])
    assert tiny.model().cost(tiny.candidate(data=2, accumulate=2)).memory["activations"] == pytest.approx(
        two.memory["activations"]
    )
    assert one.seconds["compute"] > two.seconds["compute"]


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
