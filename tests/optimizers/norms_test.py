"""LAMB and Adafactor: those of Optax for each layer and each matrix alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from engine.optimizers import adafactor, lamb

SHAPES = {"stack": (3, 8, 12), "heads": (8, 2, 6), "scales": (3, 8), "table": (20, 8), "vector": (5,)}
NUMBERS = {**dict.fromkeys(SHAPES), "stack": MuonDimensionNumbers(1, 2), "heads": MuonDimensionNumbers((0,), (1, 2))}
LAYERS = {"stack": 1, "scales": 1}


def arrays(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def alone(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each layer and each matrix as an array of its own."""
    found = {}
    for name, x in params.items():
        if name in LAYERS:
            found |= {f"{name}/{i}": each for i, each in enumerate(x)}
        else:
            found[name] = x.reshape(8, 12) if name == "heads" else x
    return found


def train(tx: Any, change: Any = lambda params: params, steps: int = 4) -> Any:
    params = change(arrays(0))
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(change(arrays(step + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def rate(step: Any) -> Any:
    return 0.1 / (1 + step)


OWN = {"matrices": lambda params: {name: NUMBERS[name] for name in params}, "stacked": lambda params: LAYERS}
CASES = {
    "lamb": (lamb(rate, weight_decay=0.1, **OWN), optax.lamb(rate, weight_decay=0.1)),
    "adafactor": (adafactor(rate, smallest=6, **OWN), optax.adafactor(rate, min_dim_size_to_factor=6)),
}


@pytest.mark.parametrize("name", CASES)
def test_stack_is_updated_as_its_layers_alone(name):
    own, of_optax = CASES[name]
    found, wanted = alone(train(own)), train(of_optax, alone)
    for path, x in wanted.items():
        np.testing.assert_allclose(found[path], x, rtol=2e-5, atol=1e-6, err_msg=path)


def test_matrices_and_tables_have_two_vectors_each():
    whole: Any = adafactor(0.1, smallest=6, **OWN).init(arrays(0))
    state = whole[0]
    shapes = {name: (state.rows[name].shape, state.columns[name].shape) for name in SHAPES}
    assert shapes == {
        "stack": ((3, 8, 1), (3, 1, 12)), "heads": ((8, 1, 1), (1, 2, 6)), "scales": ((3, 8), (1,)),
        "table": ((20, 1), (1, 8)), "vector": ((5,), (1,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_works_within_a_partition(name):
    tx = optax.partition({"a": CASES[name][0], "b": optax.sgd(0.1)}, {n: "b" if n == "vector" else "a" for n in SHAPES})
    found = train(tx)
    wanted = train(CASES[name][0])
    for path in SHAPES:
        if path != "vector":
            np.testing.assert_array_equal(found[path], wanted[path])
