"""Groups, masks, clipping and learning rates around an optax optimizer."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.base.duration import Duration, RunSize
from engine.base.errors import ConfigError
from engine.config.schema import Group, Optimizer
from engine.training.optimizer import build_optimizer, group_labels
from engine.training.roles import untraced_roles
from tests import zoo

PARAMS = {"body/kernel": jnp.ones((2, 2)), "body/bias": jnp.ones(2), "head/kernel": jnp.ones((2, 2))}
ZERO = {path: jnp.zeros_like(x) for path, x in PARAMS.items()}
ONES = {path: jnp.ones_like(x) for path, x in PARAMS.items()}


SIZE = RunSize(1, 1, 10)


def updates(config: Optimizer, grads) -> dict[str, np.ndarray]:
    tx = build_optimizer(config, SIZE, PARAMS).tx
    out: Any = tx.update(grads, tx.init(PARAMS), PARAMS, grad_norm=optax.tree.norm(grads))[0]
    return {path: np.asarray(x) for path, x in out.items()}


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


@pytest.mark.parametrize("norm", [1.01, 1.5, 1.99, 2.01, 100.0])
def test_gradient_above_clip_norm_is_scaled_to_it(norm):
    config = Optimizer(target="optax.sgd", learning_rate=1.0, schedule="constant", clip_norm=1.0)
    part = norm / np.sqrt(sum(x.size for x in PARAMS.values()))  # of each number
    out = updates(config, {path: jnp.full_like(x, part) for path, x in PARAMS.items()})
    for x in out.values():
        np.testing.assert_allclose(x, -part / norm, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 0.25])
def test_gradient_below_clip_norm_is_unchanged(size):
    config = Optimizer(target="optax.sgd", learning_rate=1.0, schedule="constant", clip_norm=1.0)
    out = updates(config, {path: jnp.full_like(x, size) for path, x in PARAMS.items()})
    assert {float(x.mean()) for x in out.values()} == {-size}


def test_group_without_match_raises_config_error():
    config = Optimizer(groups={"neck": Group(match="^neck/")})
    with pytest.raises(ConfigError, match=r"optimizer.groups.neck.match = '\^neck/' matches no trained parameter"):
        group_labels(config, PARAMS, untraced_roles({}, PARAMS, {}))


def test_group_weight_decay_needs_an_optimizer_with_weight_decay():
    config = Optimizer(target="optax.sgd", groups={"head": Group(match="head", weight_decay=0.1)})
    with pytest.raises(ConfigError, match=r"optimizer.groups.head: optax.sgd takes no weight_decay"):
        updates(config, ONES)


def sign_descent(learning_rate, scale: float = 1.0) -> optax.GradientTransformation:
    """An optimizer that a user defines."""
    return optax.chain(optax.scale_by_sign(), optax.scale(scale), optax.scale_by_learning_rate(learning_rate))


def number_descent(learning_rate) -> optax.GradientTransformation:
    return optax.sgd(0.5 * float(learning_rate(0)))


def test_optimizer_that_makes_a_number_of_the_learning_rate_is_a_config_error():
    config = Optimizer(target=f"{__name__}.number_descent")
    text = r"optimizer.target: .*number_descent uses the learning rate as a number of .*optimizer_test.py:\d+ in number"
    with pytest.raises(ConfigError, match=text):
        build_optimizer(config, SIZE, PARAMS)


def test_any_function_of_a_learning_rate_can_be_the_optimizer():
    config = Optimizer(
        target=f"{__name__}.sign_descent", learning_rate=0.5, schedule="constant", arguments={"scale": 3.0}
    )
    assert float(updates(config, ONES)["body/bias"][0]) == -1.5


def train(config: Optimizer, gradients: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Returns the parameters after each of the updates."""
    optimizer, params, found = build_optimizer(config, SIZE, PARAMS), PARAMS, []
    state: Any = optimizer.tx.init(params)
    update = jax.jit(optimizer.tx.update)
    for grads in gradients:
        change, state = update(grads, state, params, grad_norm=optax.tree.norm(grads))
        params = cast(dict[str, jax.Array], optax.apply_updates(params, change))
        found.append({path: np.asarray(x) for path, x in params.items()})
    return found


def random_gradients(steps: int) -> list[dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    shapes = {path: x.shape for path, x in PARAMS.items()}
    return [{path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()} for _ in range(steps)]


def test_groups_with_own_optimizers_equal_separate_optimizers():
    """Target, arguments, learning rate, schedule, warm-up, clip norm and period of each group."""
    head = Group(
        match="^head/", target="optax.sgd", arguments={"momentum": 0.9}, learning_rate=0.5, learning_rate_scale=0.5,
        schedule="piecewise", schedule_arguments={"scales": {"4 steps": 0.1}}, clip_norm=0.5,
    )  # fmt: skip
    bias = Group(match="bias", every=3, final_scale=0.5, warmup=Duration(2, "steps"), arguments={"b1": 0.5})
    config = Optimizer(learning_rate=0.1, arguments={"b2": 0.9}, clip_norm=1.0, groups={"head": head, "bias": bias})
    gradients = random_gradients(8)
    found = train(config, gradients)

    rate = lambda step: jnp.where(step < 4, 0.25, 0.025)  # noqa: E731
    warm = optax.join_schedules([optax.linear_schedule(0, 0.1, 2), optax.cosine_decay_schedule(0.1, 8, 0.5)], [2])
    txs = {
        "head/kernel": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, momentum=0.9)),
        "body/kernel": optax.adamw(optax.cosine_decay_schedule(0.1, 10), b2=0.9),
        # Its schedule follows the steps of the run, not the number of its updates.
        "body/bias": optax.adamw(lambda count: warm(3 * count + 2), b1=0.5, b2=0.9, mask={"body/bias": False}),
    }
    for path, tx in txs.items():
        params: Any = {path: PARAMS[path]}
        state: Any = tx.init(params)
        for step, grads in enumerate(gradients):
            given = {path: grads[path]}
            if path.startswith("body"):  # clipped by the norm of the parameters without their own clip norm
                norm = optax.tree.norm({name: g for name, g in grads.items() if name.startswith("body")})
                given = {path: grads[path] * jnp.minimum(1.0, 1.0 / norm)}
            if path != "body/bias" or step % 3 == 2:
                change, state = tx.update(given, state, params)
                params = optax.apply_updates(params, change)
            np.testing.assert_allclose(found[step][path], params[path], rtol=2e-6, atol=1e-7)


def test_group_with_a_period_skips_exactly_the_steps_between():
    groups = {"head": Group(match="^head/", every=2)}
    gradients = random_gradients(6)
    config = Optimizer(learning_rate=0.1, schedule="constant", groups=groups, clip_norm=None)
    found = train(config, gradients)
    alone = train(dataclasses.replace(config, groups={}), gradients[1::2])
    np.testing.assert_array_equal(found[0]["head/kernel"], PARAMS["head/kernel"])
    for update in range(3):
        np.testing.assert_array_equal(found[2 * update + 1]["head/kernel"], alone[update]["head/kernel"])
        if update < 2:
            np.testing.assert_array_equal(found[2 * update + 2]["head/kernel"], alone[update]["head/kernel"])


def test_group_without_moments_has_no_state():
    groups = {"head": Group(match="^head/", target="optax.sgd", schedule="constant")}
    state = build_optimizer(Optimizer(groups=groups), SIZE, PARAMS).tx.init(PARAMS)
    sizes = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert sizes == 2 * sum(x.size for path, x in PARAMS.items() if path.startswith("body/"))


def test_group_target_must_take_the_arguments():
    groups = {"head": Group(match="^head/", target="optax.sgd", arguments={"b1": 0.9})}
    with pytest.raises(ConfigError, match=r"optimizer.groups.head.b1: optax.sgd takes no such argument"):
        build_optimizer(Optimizer(groups=groups), SIZE, PARAMS)
    groups = {"head": Group(match="^head/", target="optax.sgdd")}
    with pytest.raises(ConfigError, match=r"^optimizer.groups.head.target: found 'optax.sgdd'"):
        build_optimizer(Optimizer(groups=groups), SIZE, PARAMS)


def test_another_learning_rate_needs_no_other_program():
    """The text of the program is the key of the compile cache."""
    piecewise = {"schedule": "piecewise", "schedule_arguments": {"scales": {"5 steps": 0.1}}}
    function = {"schedule": "optax.schedules.exponential_decay", "schedule_arguments": {
        "init_value": 1.0, "decay_rate": 0.5}}  # fmt: skip
    head = {"head": Group(match="^head/", schedule="warmup_stable_decay", warmup=Duration(1, "steps"))}
    cases = [
        (dict(schedule="cosine", warmup=Duration(2, "steps")), dict(final_scale=0.1)),
        (dict(groups=head), dict(groups={"head": dataclasses.replace(head["head"], learning_rate=0.3)})),
        (piecewise, dict(schedule_arguments={"scales": {"5 steps": 0.2}})),
        (function, {}),
    ]
    for settings, change in cases:
        programs = [zoo.program(zoo.Classify(width=4), **settings)]
        programs.append(zoo.program(zoo.Classify(width=4), **{**settings, "learning_rate": 0.02, **change}))
        texts = [program.trace(1).lower().as_text() for program in programs]
        assert texts[0] == texts[1]
        assert programs[0].spec.optimizer.numbers.tolist() != programs[1].spec.optimizer.numbers.tolist()
