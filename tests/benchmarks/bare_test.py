"""The comparison is fair: the loop by hand and the engine compute the same losses and accuracies."""

import jax
import numpy as np
import pytest

from benchmarks import interleaved, workloads

STEPS = 12


@pytest.mark.parametrize("name", workloads.NAMES)
def test_the_loop_by_hand_has_the_numbers_of_the_engine(name):
    config = workloads.config(name, steps=interleaved.total(STEPS, 1), log__every="1 step", log__tensorboard=False)
    by_hand = workloads.bare_loop(config).train(2 * STEPS, log_every=1)
    with interleaved.EngineLoop(config, STEPS) as engine:
        engine.turn()
    rows = {row["step"]: [row["loss"], row["accuracy"]] for row in engine.rows}
    assert sorted(rows) == list(range(1, 2 * STEPS + 1))
    np.testing.assert_allclose(by_hand, list(rows.values()), rtol=0, atol=1e-5)
    assert by_hand[-1][0] < by_hand[0][0]


def test_the_loop_by_hand_runs_on_the_engines_devices():
    bare = workloads.bare_loop(workloads.config(workloads.DIGITS, steps=10))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(bare.state[0])} == {jax.device_count()}
