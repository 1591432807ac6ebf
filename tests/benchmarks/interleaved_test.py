"""Interleaved turns: their order, and an engine loop that trains only in its turn."""

import pytest

from benchmarks import interleaved, workloads
from engine.base.errors import ConvoyError


def test_every_second_round_is_in_reverse_order():
    order = []
    seconds = interleaved.interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abbaab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_engine_loop_trains_only_in_its_turn():
    config = workloads.config(
        workloads.DIGITS, steps=interleaved.total_steps(8, 2), log__every="8 steps", log__tensorboard=False
    )
    with interleaved.EngineLoop(config, 8) as engine:
        engine.turn()
        engine.turn()
    assert engine.step == 24
    assert list(engine.losses()) == [8, 16, 24]


def test_error_of_the_run_is_raised():
    config = workloads.config(workloads.DIGITS, steps=8, train__global_batch_size=3)
    with pytest.raises(ConvoyError, match="not divisible"), interleaved.EngineLoop(config, 8):
        pass
