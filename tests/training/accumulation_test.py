"""Models whose result depends on the number of microbatches are refused by name, unless a flag accepts that."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import ConfigError
from tests import zoo


class Norm(nnx.Module):
    """A model with batch statistics; without convolutions, which compile slowly."""

    def __init__(self, rngs, frozen=False):
        self.inner = zoo.Mlp(8, 0.0, rngs)
        self.norm = nnx.BatchNorm(zoo.SIZE, use_running_average=True if frozen else None, rngs=rngs)
        self.rngs = rngs.fork()

    def __call__(self, x, rng=None):
        return self.inner(self.norm(x), rng)


class Normalized(zoo.Classify):
    def build(self, rngs):
        return Norm(rngs)


class Frozen(zoo.Classify):
    def build(self, rngs):
        return Norm(rngs, frozen=True)

    def loss(self, model, batch, rng):
        model.norm.eval()
        return super().loss(model, batch, rng)


class Noisy(Frozen):
    def loss(self, model, batch, rng):
        batch = {**batch, "x": batch["x"] + model.rngs.normal(batch["x"].shape)}
        return super().loss(model, batch, rng)


def test_state_that_the_forward_pass_changes_is_refused_by_name():
    with pytest.raises(ConfigError) as error:
        zoo.program(Normalized(), accumulate=2)
    assert "train.accumulate = 2: the forward pass changes norm/mean, norm/var in each" in str(error.value)
    assert "GroupNorm" in str(error.value) and "train.approximate_accumulation=True" in str(error.value)
    zoo.program(Normalized())


def test_random_numbers_of_a_whole_microbatch_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"draws from nnx.Rngs \(rngs/default/count\), once per microbatch"):
        zoo.program(Noisy(), accumulate=2)
    zoo.program(Noisy())


def test_state_that_does_not_change_is_exact_with_microbatches():
    settings: dict[str, Any] = dict(target="optax.sgd", clip_norm=None)
    full, _ = zoo.run(zoo.program(Frozen(), **settings), zoo.batches(2))
    parts, _ = zoo.run(zoo.program(Frozen(), accumulate=4, **settings), zoo.batches(2))
    zoo.assert_close(full.params, parts.params, 1e-6)
    zoo.assert_equal(full.model_state, parts.model_state)


@pytest.mark.slow
def test_flag_accepts_the_approximation():
    batch = zoo.batches(1)
    exact, _ = zoo.run(zoo.program(Normalized()), batch)
    program = zoo.program(Normalized(), accumulate=2, approximate_accumulation=True)
    found, _ = zoo.run(program, batch)
    # Each microbatch, here the even and the odd rows, moves the mean by a hundredth.
    mean = jnp.zeros(zoo.SIZE)
    for rows in (batch[0]["x"][0::2], batch[0]["x"][1::2]):
        mean = 0.99 * mean + 0.01 * rows.mean(0)
    np.testing.assert_allclose(found.model_state["norm/mean"], mean, rtol=1e-5)
    assert not np.allclose(jax.device_get(exact.model_state["norm/mean"]), mean, rtol=1e-3)
