"""Factors of losses by step, epoch and share of the run."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import ConvoyError
from engine.data.context import Context
from engine.joint.loss_weights import LossWeights


def at(weights, step, total=100):
    context = Context(jnp.int32(step), jnp.float32(step / 10), total, None)
    return float(np.asarray(LossWeights({"lanes": weights}).at("lanes", context)))


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        ({"0 steps": 0.0, "20 steps": 1.0}, [0.0, 0.5, 1.0]),
        ({"0 steps": 1.0, "1 epoch": 3.0, "5 epochs": 2.0}, [1.0, 3.0, 2.25]),
        ({"0 steps": 1.0, "10%": 0.0}, [1.0, 0.0, 0.0]),
    ],
)
def test_factor_follows_its_times_linearly(weights, found):
    assert [at(weights, step) for step in (0, 10, 40)] == pytest.approx(found)


def test_dataset_without_a_factor_has_1():
    assert LossWeights({"lanes": 2.0}).at("boxes", Context(0, 0, 1, None)) == 1.0


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (-1.0, r"weights of lanes: found -1.0. Allowed are numbers from 0"),
        ("high", r"weights of lanes: found 'high'"),
        ({"0 steps": 1.0, "5 steps": 1.0, "2 epochs": 1.0}, r"times in epochs and steps. Use one of steps, epochs, %"),
        ({"0 steps": 1.0, "9 examples": 2.0}, r"times in examples. Use one of"),
        ({"0 steps": 1.0, "9 steps": 2.0, "5 steps": 3.0}, r"the times are not increasing"),
        ({"5 steps": 1.0}, r"the first time is '5 steps'"),
        ({"0 steps": 1.0, "soon": 2.0}, r"weights of lanes"),
    ],
)
def test_wrong_factors_are_refused(weights, text):
    with pytest.raises(ConvoyError, match=text):
        LossWeights({"lanes": weights})
