"""Optimizers with those of torch and of the authors' packages, whose parameters are golden numbers.

Written by: python -m benchmarks.references --only=optimizers --golden=tests/optimizers/golden
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.references import optimizers

FOLDER = Path(__file__).parent / "golden" / "optimizers"


@pytest.mark.parametrize("item", optimizers.ITEMS)
def test_twenty_steps_equal_those_of_the_outside_optimizer(item):
    [row] = optimizers.compared(FOLDER, item)
    assert row.agrees, row


# Known limitation of optax, which sees one array where the layers are stacked.
@pytest.mark.parametrize(("item", "differs"), [("lamb", {"stack"}), ("adafactor", {"stack", "heads"})])
def test_optax_computes_norms_of_all_layers_of_a_stack_together(item, differs):
    params, gradients = optimizers.given(FOLDER)
    found = optimizers.run(item, params, gradients, optimizers.OF_OPTAX)
    errors = optimizers.errors(FOLDER, item, params, found)
    large = {key.partition("@")[0] for key, error in errors.items() if error > 0.05}
    assert large == differs
    assert all(error <= optimizers.TOLERANCE for key, error in errors.items() if key.partition("@")[0] not in differs)


def schedule_free(start, gradients, of_steps, of_weights):
    """Schedule-free AdamW (Defazio et al. 2024), whose weights may have other rates than its steps."""
    x = y = z = start.astype(np.float64)
    nu, total = np.zeros_like(z), 0.0
    for step, g in enumerate(gradients.astype(np.float64)):
        nu = 0.999 * nu + 0.001 * g**2
        root = np.sqrt(nu / (1 - 0.999 ** (step + 1))) + 1e-8
        z = z - of_steps(step) * (g / root + 0.1 * y)
        weight = of_weights(step) ** 2
        total += weight
        x = x + weight / total * (z - x) if total else x
        y = 0.9 * x + 0.1 * z
    return y


# Known limitation of optax: step k has the rate of k, and the weight in the average has that of k + 1.
def test_optax_weights_a_schedule_free_average_by_the_rate_of_the_next_step():
    params, gradients = optimizers.given(FOLDER)
    tx = optax.contrib.schedule_free_adamw(0.05, warmup_steps=10, weight_decay=0.1)
    found: Any = {"x": jnp.asarray(params["tall"])}
    state, update = tx.init(found), jax.jit(tx.update)
    for g in gradients["tall"]:
        updates, state = update({"x": jnp.asarray(g)}, state, found)
        found = optax.apply_updates(found, updates)

    def rate(step):
        return 0.05 * min(step / 10, 1)

    def difference(of_weights):
        wanted = schedule_free(params["tall"], gradients["tall"], rate, of_weights)
        return np.abs(found["x"] - wanted).max() / np.abs(wanted - params["tall"]).max()

    assert difference(lambda step: rate(step + 1)) < 1e-5
    assert difference(rate) > 0.02


def test_gradients_are_not_degenerate():
    _, gradients = optimizers.given(FOLDER)
    assert min(np.abs(x).min() for x in gradients.values()) > 1e-5
