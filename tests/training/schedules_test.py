"""Learning-rate schedules: formulas, warm-up, functions of the user, and rates that are arguments of a program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.base.duration import Duration, RunSize
from engine.base.errors import ConfigError
from engine.config.schema import Optimizer
from engine.config.setting import SCHEDULES
from engine.training.optimizer import build_optimizer
from engine.training.schedules import Schedule, build_schedule, message

ARGUMENTS: Mapping[str, Any] = {
    "piecewise": {"scales": {"2 steps": 0.5}},
    "inverse_sqrt": {"timescale": "3 steps"},
    "warm_restarts": {"first": "3 steps", "factor": 2},
}


def schedule(name: str, warmup: int, total: int, peak: float = 1.0, final: float = 0.0, **arguments: Any) -> Schedule:
    config = Optimizer(
        schedule=name, learning_rate=peak, final_scale=final, warmup=Duration(warmup, "steps"),
        schedule_arguments=arguments,
    )  # fmt: skip
    return build_schedule(config, RunSize(8, 80, total))


def rates(schedule: Schedule, *steps: int) -> list[float]:
    return [round(float(schedule(step)), 4) for step in steps]


def test_schedules_warm_up_and_decay():
    assert rates(schedule("cosine", 10, 110, final=0.1), 0, 5, 10, 60, 110) == [0.0, 0.5, 1.0, 0.55, 0.1]
    assert rates(schedule("linear", 0, 100, 2.0), 0, 50, 100) == [2.0, 1.0, 0.0]
    assert rates(schedule("constant", 2, 100, 2.0), 0, 1, 2, 99) == [0.0, 1.0, 2.0, 2.0]


def test_warmup_stable_decay_decays_in_its_last_steps():
    wsd = schedule("warmup_stable_decay", 10, 110, 2.0, 0.1, decay="20 steps")
    assert rates(wsd, 0, 5, 10, 89, 90, 100, 110) == [0.0, 1.0, 2.0, 2.0, 2.0, 1.1, 0.2]
    assert rates(schedule("warmup_stable_decay", 0, 100), 80, 90, 100) == [1.0, 0.5, 0.0]  # by default 20 % of the run
    assert rates(schedule("warmup_stable_decay", 0, 100, decay=1), 0, 50, 100) == [1.0, 0.5, 0.0]
    assert rates(schedule("warmup_stable_decay", 0, 100, decay=0.5, shape="cosine"), 50, 75, 100) == [1.0, 0.5, 0.0]
    assert rates(schedule("warmup_stable_decay", 0, 100, decay="10 epochs", shape="sqrt"), 25, 36) == [0.5, 0.4]
    assert rates(schedule("warmup_stable_decay", 1, 2, decay="5 epochs"), 0, 1, 2) == [0.0, 1.0, 0.0]


def test_inverse_sqrt_is_the_schedule_of_the_transformer():
    steps = np.arange(1, 400)
    found = np.array([float(schedule("inverse_sqrt", 100, 400)(int(step))) for step in steps[::13]])
    np.testing.assert_allclose(found, 10 * np.minimum(steps**-0.5, steps * 100**-1.5)[::13], rtol=1e-6)
    assert rates(schedule("inverse_sqrt", 0, 400, timescale="2 steps"), 0, 6, 16) == [1.0, 0.5, 0.3333]


def test_piecewise_factors_apply_from_their_steps_on():
    piecewise = schedule("piecewise", 1, 40, 2.0, scales={"2 epochs": 0.01, "10 steps": 0.1})
    assert rates(piecewise, 0, 1, 9, 10, 19, 20, 39) == [0.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02]


def all_rates(schedule: Schedule, steps: int) -> np.ndarray:
    """Returns the rates of all steps, as the compiled program computes them."""
    numbers = jnp.asarray(schedule.numbers, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(lambda step: schedule.with_numbers(list(numbers))(step)))(jnp.arange(steps)))


def test_one_cycle_is_that_of_optax_and_of_the_paper():
    cycle = schedule("one_cycle", 0, 100, 0.5, 0.04 / 1e4)
    library = np.asarray(jax.vmap(optax.cosine_onecycle_schedule(100, 0.5))(jnp.arange(101)))
    np.testing.assert_allclose(all_rates(cycle, 101), library, rtol=1e-5, atol=1e-8)
    lines = schedule("one_cycle", 10, 110, 2.0, 0.01, rise=0.4, start=0.1, shape="linear")
    expected = np.concatenate([0.2 * np.arange(10), np.interp(np.arange(101), [0, 40, 100], [0.2, 2.0, 0.02])])
    np.testing.assert_allclose(all_rates(lines, 111), expected, rtol=1e-5)
    assert rates(schedule("one_cycle", 0, 10, rise=0), 0, 5, 10) == [1.0, 0.5, 0.0]
    assert rates(schedule("one_cycle", 0, 10, rise=1), 0, 5, 9) == [0.04, 0.52, 0.9765]


@pytest.mark.parametrize(("factor", "lengths"), [(1, [10, 10, 10, 10, 10]), (2, [10, 20, 40]), (3, [10, 30, 90])])
def test_warm_restarts_are_those_of_optax_and_of_the_paper(factor, lengths):
    restarts = schedule("warm_restarts", 5, 55, 0.5, 0.1, first="1 epoch", factor=factor)  # of 10 steps
    cycles: Any = [
        dict(init_value=0.5, peak_value=0.5, warmup_steps=0, decay_steps=length, end_value=0.05) for length in lengths
    ]
    found = all_rates(restarts, 55)
    np.testing.assert_allclose(found[:5], 0.1 * np.arange(5), rtol=1e-6)
    np.testing.assert_allclose(found[5:], jax.vmap(optax.sgdr_schedule(cycles))(jnp.arange(50)), rtol=2e-6)
    done = np.concatenate([np.arange(length) / length for length in lengths])[:50]
    np.testing.assert_allclose(found[5:], 0.05 + 0.5 * 0.45 * (1 + np.cos(np.pi * done)), rtol=2e-6)
    longer = schedule("warm_restarts", 5, 500, 0.5, 0.1, first="1 epoch", factor=factor)
    np.testing.assert_array_equal(all_rates(longer, 55), found, "does not follow the length of the run")


@pytest.mark.parametrize(
    ("factor", "total", "end"),
    [(1, 35, None), (1, 36, 45), (1, 7, 15), (2, 35, None), (2, 36, 75), (2, 34, 35), (2, 3, 15)],
)
def test_message_says_that_a_cycle_does_not_end(factor, total, end):
    config = Optimizer(
        schedule="warm_restarts",
        warmup=Duration(5, "steps"),
        schedule_arguments={"first": "10 steps", "factor": factor},
    )
    size = RunSize(8, 80, total)
    text = message(config, build_schedule(config, size), size)
    within = f"the run ends at step {total}, within a cycle of warm_restarts that ends at step {end}:"
    expected = "None" if end is None else within
    assert expected in str(text)


def test_linear_and_cosine_are_those_of_optax_bitwise():
    """Earlier releases used the schedules of optax, and runs of these releases must resume with equal bits."""
    peak, final, steps = 0.007, 0.13, range(0, 60, 7)
    own = {
        "linear": optax.linear_schedule(peak, peak * final, 40),
        "cosine": optax.cosine_decay_schedule(peak, 40, final),
    }
    for name, expected in own.items():
        both = optax.join_schedules([optax.linear_schedule(0.0, peak, 10), expected], [10])
        found = schedule(name, 10, 50, peak, final)
        traced = jax.jit(lambda numbers, step, found=found: found.with_numbers(numbers)(step))
        numbers = [jnp.float32(x) for x in found.numbers]
        for step in map(jnp.int32, steps):
            assert float(traced(numbers, step)) == float(jax.jit(both)(step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_any_valid_config_is_finite(name):
    """With the largest values that `config/validation.py` accepts, and more warm-up than steps."""
    for peak, final in ((0.0, 1e30), (1e30, 1.0), (1.0, 1e15), (1e-300, 0.0)):
        for warmup, total in ((0, 1), (10, 5), (2**31 - 1, 2**31 - 1)):
            rate = schedule(name, warmup, total, peak, final, **ARGUMENTS.get(name, {}))
            assert np.isfinite([float(rate(step)) for step in (0, 1, total - 1, total)]).all(), (peak, warmup, total)


def triangle(total_steps: int, height: float = 1.0) -> optax.Schedule:
    """A schedule that a user defines."""
    return lambda step: height * (1 - jnp.abs(2 * step / total_steps - 1))


def test_function_by_dotted_path_is_a_factor_on_the_learning_rate():
    own = schedule(f"{__name__}.triangle", 10, 110, 2.0, height=0.5)
    assert rates(own, 0, 5, 10, 60, 85) == [0.0, 1.0, 0.0, 1.0, 0.5]
    library = schedule("optax.schedules.polynomial_schedule", 0, 100, 2.0, init_value=1.0, end_value=0.5, power=1)
    assert rates(library, 0, 50, 100) == [2.0, 1.5, 1.0]
    config = Optimizer(schedule=f"{__name__}.triangle", learning_rate=0.1)
    size = RunSize(8, 80, 101)
    assert message(config, build_schedule(config, size), size) == (
        f"optimizer.schedule: {__name__}.triangle times learning_rate = 0.1 is 0 at step 0, 0.099 at step 50, 0.00198 "
        "at step 100"
    )
    assert message(Optimizer(), build_schedule(Optimizer(), size), size) is None


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("optax.schedules.no_such", {}, r"^optimizer.schedule: found 'optax.schedules.no_such', but"),
        (f"{__name__}.triangle", {"width": 3}, r"^optimizer.schedule_arguments.width: .*takes no such argument"),
        ("optax.schedules.constant_schedule", {}, r"schedule_arguments.value: is missing.*arguments.value=VALUE"),
        (
            f"{__name__}.rates",
            {"schedule": 1},
            r"^optimizer.schedule: .*rates returned a list, which is not a",
        ),
    ],
)
def test_function_that_does_not_fit_is_a_config_error(name, arguments, text):
    with pytest.raises(ConfigError, match=text):
        schedule(name, 0, 10, **arguments)


def updated(config: Optimizer, steps: int, gradient: float) -> np.ndarray:
    """Returns a parameter that begins at 1, before each step and after the last one."""
    params = {"kernel": jnp.ones((1, 1))}
    tx = build_optimizer(config, RunSize(8, 80, steps), params).tx

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), params["kernel"][0, 0]

    (last, _), found = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return np.append(found, last["kernel"][0, 0])


def test_weight_decay_may_be_a_schedule_of_optax():
    """That of DINO (Caron et al. 2021, arXiv:2104.14294): from 0.04 to 0.4 as half a cosine."""
    decay = {"target": "optax.schedules.cosine_decay_schedule", "init_value": 0.04, "decay_steps": 20, "alpha": 10}
    config = Optimizer(learning_rate=0.5, schedule="constant", clip_norm=None, arguments={"weight_decay": decay})
    found = updated(config, 20, gradient=0.0)
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(found, np.cumprod([1, *(1 - 0.5 * expected)]), rtol=1e-6)


def growing_batch(learning_rate: Any, first: int, times: int) -> optax.GradientTransformation:
    """The example of docs/add-an-optimizer.md with `optax.sgd`, which is simple to check."""

    def step_of(update: Any) -> jax.Array:
        return jnp.where(update < first, update, first + times * (update - first + 1) - 1)

    inner = optax.sgd(lambda update: learning_rate(step_of(update)))

    def every(update: Any) -> jax.Array:
        return jnp.where(update < first, 1, times)

    return optax.MultiSteps(inner, every).gradient_transformation()


def test_function_of_the_user_may_let_the_batch_grow():
    config = Optimizer(
        target=f"{__name__}.growing_batch", learning_rate=0.1, schedule="linear", clip_norm=None,
        arguments={"first": 3, "times": 4},
    )  # fmt: skip
    found = updated(config, 11, gradient=1.0)
    rate = 0.1 * (1 - np.arange(11) / 11)
    updates = np.where(np.isin(np.arange(11), [0, 1, 2, 6, 10]), rate, 0.0)
    np.testing.assert_allclose(found, 1 - np.cumsum([0, *updates]), rtol=1e-5)


def test_longest_warmup_is_limited():
    with pytest.raises(ConfigError, match=r"optimizer.warmup: 4294967296 steps, allowed are at most 2147483647"):
        schedule("constant", 2**32, 10)
