"""The engine and the bare loop train the same model on the same batches, and the row compares their times."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import bare, loop, workloads
from convoy_zoo.models.fashion_mnist import Fashion

STEPS = 5


@pytest.mark.slow
def test_engine_and_bare_loop_have_the_same_losses_at_every_step():
    times = loop.measure(workloads.DIGITS, 1, 0, STEPS, log__every="1 step", log__tensorboard=False)
    assert list(times.engine_losses) == list(range(1, 2 * STEPS + 1))  # the turn that compiles, and a measured one
    assert list(times.bare_losses) == list(times.engine_losses)
    engine, by_hand = (list(losses.values()) for losses in (times.engine_losses, times.bare_losses))
    np.testing.assert_allclose(engine, by_hand, rtol=0, atol=1e-5)
    assert engine[-1] < engine[0]
    assert len(times.engine_ms) == len(times.bare_ms) == 1


@pytest.mark.slow
def test_bare_convolutions_are_the_cnn_of_the_models():
    model = Fashion(width=16).build(nnx.Rngs(0))
    image = jax.numpy.asarray(np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8))

    def arrays(kind):
        return {"/".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model, kind))}

    logits, statistics = bare.convolutions(arrays(nnx.Param), arrays(nnx.BatchStat), image)
    np.testing.assert_allclose(logits, model(image), rtol=0, atol=1e-5)
    assert statistics.keys() == arrays(nnx.BatchStat).keys()
    for name, value in arrays(nnx.BatchStat).items():  # the call of the model has changed them
        np.testing.assert_allclose(statistics[name], value, rtol=0, atol=1e-5)


def test_row_is_the_ratio_of_the_times():
    row = loop.row(workloads.CNN, loop.Comparison([3.0, 4.0, 2.0], [2.0, 2.0, 2.0], {}, {}))
    assert row.values == (1.5, 2.0, 1.0)
    assert "1.500 (1.000-2.000); engine 3.000 ms, bare 2.000 ms" in str(row)
    assert "at most 1.05: not met" in str(row)


def test_bare_loop_runs_on_the_engines_devices():
    bare = workloads.bare_loop(workloads.config(workloads.DIGITS, steps=10))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(bare.state[0])} == {jax.device_count()}
