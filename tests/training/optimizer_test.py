"""Schedules, groups, masks and clipping around an optax optimizer."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.config.errors import ConfigError
from engine.config.schema import Group, Optimizer
from engine.training.optimizer import build_optimizer, group_labels, schedule

PARAMS = {"body/kernel": jnp.ones((2, 2)), "body/bias": jnp.ones(2), "head/kernel": jnp.ones((2, 2))}
ZERO = {path: jnp.zeros_like(x) for path, x in PARAMS.items()}
ONES = {path: jnp.ones_like(x) for path, x in PARAMS.items()}


def updates(config: Optimizer, grads) -> dict[str, np.ndarray]:
    tx = build_optimizer(config, schedule(config, 0, 10), PARAMS)
    out: Any = tx.update(grads, tx.init(PARAMS), PARAMS, grad_norm=optax.tree.norm(grads))[0]
    return {path: np.asarray(x) for path, x in out.items()}


def test_schedule_warms_up_and_decays():
    rate: Any = schedule(Optimizer(learning_rate=1.0, schedule="cosine", final_scale=0.1), 10, 110)
    assert [round(float(rate(s)), 4) for s in (0, 5, 10, 60, 110)] == [0.0, 0.5, 1.0, 0.55, 0.1]
    rate = schedule(Optimizer(learning_rate=2.0, schedule="linear"), 0, 100)
    assert [round(float(rate(s)), 4) for s in (0, 50, 100)] == [2.0, 1.0, 0.0]
    rate = schedule(Optimizer(learning_rate=2.0, schedule="constant"), 2, 100)
    assert [round(float(rate(s)), 4) for s in (0, 1, 2, 99)] == [0.0, 1.0, 2.0, 2.0]


def test_weight_decay_acts_on_matrices_by_default():
    config = Optimizer(learning_rate=1.0, schedule="constant", arguments={"weight_decay": 0.5})
    out = updates(config, ZERO)
    assert {path: float(x.mean()) for path, x in out.items()} == {
        "body/kernel": -0.5,
        "body/bias": 0.0,
        "head/kernel": -0.5,
    }


@pytest.mark.parametrize(("decay", "bias"), [("matrices", 0.0), ("all", -0.5)])
def test_decay_all_applies_to_vectors(decay, bias):
    config = Optimizer(learning_rate=1.0, schedule="constant", arguments={"weight_decay": 0.5}, decay=decay)
    assert float(updates(config, ZERO)["body/bias"].mean()) == bias


def test_mask_in_arguments_overrides_the_default():
    config = Optimizer(learning_rate=1.0, schedule="constant", arguments={"weight_decay": 0.5, "mask": None})
    assert float(updates(config, ZERO)["body/bias"].mean()) == -0.5


def test_groups_have_their_own_learning_rate_and_decay():
    groups = {"head": Group(match="^head/", learning_rate_scale=10.0, weight_decay=0.0)}
    settings: dict[str, Any] = dict(learning_rate=1.0, schedule="constant", groups=groups, clip_norm=None)
    out = updates(Optimizer(**settings, arguments={"weight_decay": 0.5}), ZERO)
    assert float(out["head/kernel"].mean()) == 0.0
    assert float(out["body/kernel"].mean()) == -0.5
    settings["groups"] = {"head": Group(match="^head/", learning_rate_scale=10.0)}
    out = updates(Optimizer(**settings, target="optax.sgd"), ONES)
    assert float(out["head/kernel"].mean()) == -10.0
    assert float(out["body/bias"].mean()) == -1.0


def test_whole_gradient_is_clipped_before_groups():
    groups = {"head": Group(match="^head/")}
    config = Optimizer(target="optax.sgd", learning_rate=1.0, schedule="constant", groups=groups, clip_norm=1.0)
    out = updates(config, ONES)
    assert np.isclose(np.sqrt(sum((x**2).sum() for x in out.values())), 1.0)


@pytest.mark.parametrize("size", [0.0, 0.25])
def test_gradient_below_clip_norm_is_unchanged(size):
    config = Optimizer(target="optax.sgd", learning_rate=1.0, schedule="constant", clip_norm=1.0)
    out = updates(config, {path: jnp.full_like(x, size) for path, x in PARAMS.items()})
    assert {float(x.mean()) for x in out.values()} == {-size}


def test_group_without_match_raises_config_error():
    config = Optimizer(groups={"neck": Group(match="^neck/")})
    with pytest.raises(ConfigError, match=r"optimizer.groups.neck.match = '\^neck/' matches no trained parameter"):
        group_labels(config, PARAMS)


def test_group_weight_decay_needs_an_optimizer_with_weight_decay():
    config = Optimizer(target="optax.sgd", groups={"head": Group(match="head", weight_decay=0.1)})
    with pytest.raises(ConfigError, match=r"optax.sgd takes no weight_decay"):
        updates(config, ONES)


def sign_descent(learning_rate, scale: float = 1.0) -> optax.GradientTransformation:
    """An optimizer that a user defines."""
    return optax.chain(optax.scale_by_sign(), optax.scale(scale), optax.scale_by_learning_rate(learning_rate))


def test_any_function_of_a_learning_rate_can_be_the_optimizer():
    config = Optimizer(
        target=f"{__name__}.sign_descent", learning_rate=0.5, schedule="constant", arguments={"scale": 3.0}
    )
    assert float(updates(config, ONES)["body/bias"][0]) == -1.5


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_schedule_of_any_valid_config_is_finite(shape):
    """With the largest values that `config/validation.py` accepts, and more warm-up than steps."""
    for peak, scale in ((0.0, 1e30), (1e30, 1.0), (1.0, 1e15), (1e-300, 0.0)):
        config = Optimizer(learning_rate=peak, final_scale=scale, schedule=shape)
        for warmup, total in ((0, 1), (10, 5), (2**31 - 1, 2**31 - 1)):
            rate: Any = schedule(config, warmup, total)
            assert np.isfinite([float(rate(step)) for step in (0, 1, total - 1, total)]).all(), (peak, warmup, total)
