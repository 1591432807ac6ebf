"""Schedule-free optimizers: the formulas of the paper, with a warm-up and a mask of the weight decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.optimizers import schedule_free_adamw, schedule_free_sgd

STEPS, WARMUP = 20, 10


def rate(step: Any) -> Any:
    return 0.05 * jnp.minimum(step / WARMUP, 1)


def followed(start: np.ndarray, gradients: np.ndarray, is_adam: bool, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the point of the gradient and the average, in float64."""
    x = y = z = start.astype(np.float64)
    nu, total = np.zeros_like(z), 0.0
    for step, g in enumerate(gradients.astype(np.float64)):
        nu = 0.999 * nu + 0.001 * g**2
        root = np.sqrt(nu / (1 - 0.999 ** (step + 1))) + 1e-8 if is_adam else 1.0
        lr = 0.05 * min(step / WARMUP, 1)
        z = z - lr * (g / root + decay * y)
        total += lr**2
        x = x + lr**2 / total * (z - x) if total else x
        y = 0.9 * x + 0.1 * z
    return y, x


@pytest.mark.parametrize("is_adam", [True, False])
def test_average_has_the_rates_of_its_steps(is_adam):
    rng = np.random.default_rng(0)
    params: Any = {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)}
    params = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    gradients = {name: rng.normal(size=(STEPS, *x.shape)).astype(np.float32) for name, x in params.items()}
    make = schedule_free_adamw if is_adam else schedule_free_sgd
    tx, start = make(rate, weight_decay=0.1, weight_decay_mask={"kernel": True, "bias": False}), dict(params)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(STEPS):
        updates, state = update({name: g[step] for name, g in gradients.items()}, state, params)
        params = optax.apply_updates(params, updates)
    averages: Any = optax.contrib.schedule_free_eval_params(state, params)
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        point, average = followed(np.asarray(start[name]), gradients[name], is_adam, decay)
        for found, wanted in ((params[name], point), (averages[name], average)):
            assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted - start[name]) < 2e-5
