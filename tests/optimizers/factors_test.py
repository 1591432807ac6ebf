"""The factors of matrices: their places in the state, and their products."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from engine.optimizers.factors import COLUMNS, ROWS, Places, in_sides, outer_products, squares
from tests.optimizers.cases import MATRICES, SHAPES, arrays, matrices

UPDATES: dict[str, Any] = {
    path: jnp.asarray(x) if path in MATRICES else optax.MaskedNode() for path, x in arrays(0).items()
}


def test_state_of_both_sides_comes_back_in_its_place():
    state = [squares(UPDATES, matrices, side, 16, diagonal=2.0) for side in (ROWS, COLUMNS)]
    assert {path: getattr(x, "shape", None) for path, x in state[ROWS].items()} == {
        "blocks/down": None, "blocks/query": (4, 16, 16), "experts/up": (2, 2, 16, 16), "one": (16, 16),
        "embedding": None, "scale": None,
    }  # fmt: skip
    np.testing.assert_array_equal(state[COLUMNS]["blocks/query"][3], 2 * np.eye(16))
    places = Places(UPDATES, matrices)
    sides = places.sides(*state)
    assert [sorted(each) for each in sides] == [[COLUMNS], [ROWS, COLUMNS], [ROWS], [ROWS]]
    for side in (ROWS, COLUMNS):
        again = places.side(sides, side)
        assert {path: getattr(x, "shape", None) for path, x in again.items()} == {
            path: getattr(x, "shape", None) for path, x in state[side].items()
        }


def test_gradients_and_updates_are_those_of_the_matrices():
    places = Places({**UPDATES, "one": UPDATES["one"].astype(jnp.bfloat16)}, matrices)
    updates = places.updates([2 * g for g in places.gradients()])
    assert updates["one"].dtype == jnp.bfloat16 and updates.keys() == SHAPES.keys()
    np.testing.assert_array_equal(updates["blocks/query"], 2 * arrays(0)["blocks/query"])


def test_outer_products_are_those_of_the_sides_that_have_a_factor():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    found = outer_products(g, {COLUMNS: jnp.zeros((2, 4, 4))})
    assert list(found) == [COLUMNS]
    np.testing.assert_allclose(found[COLUMNS], g.mT @ g, atol=1e-5)
    assert in_sides([{}, found], ["x"]) == [{}, {COLUMNS: "x"}]  # pyright: ignore[reportArgumentType]
