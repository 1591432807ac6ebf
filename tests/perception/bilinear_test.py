import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.perception import grid_sample
from tests.perception.goldens import differing

X = jnp.arange(12.0).reshape(1, 3, 4, 1)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_values_and_gradients_equal_pytorch(mode):
    assert differing(f"grid_sample {mode}", 12) == []


def test_grid_of_any_number_of_dimensions_and_half_precision():
    grid = jnp.linspace(-1, 1, 24, dtype=jnp.float32).reshape(1, 2, 3, 2, 2)
    run = jax.jit(grid_sample)
    wide, found = run(X, grid), run(X.astype(jnp.bfloat16), grid)
    assert (found.shape, found.dtype) == ((1, 2, 3, 2, 1), jnp.bfloat16)
    np.testing.assert_allclose(found.astype(jnp.float32), wide, rtol=2**-8)


def test_value_that_is_not_finite_outside_of_the_four_pixels_is_not_read():
    x, grid = X.at[0, 2, 3].set(jnp.inf), jnp.array([[[-1.0, -1.0], [jnp.nan, 0]]])
    found = jax.jit(functools.partial(grid_sample, align_corners=True))(x, grid)
    np.testing.assert_array_equal(found[0, :, 0], [0, jnp.nan])


def test_points_that_are_not_finite():
    grid = jnp.array([[[jnp.nan, 0], [jnp.inf, 0], [-jnp.inf, 0]]])
    wanted: dict[Literal["zeros", "border", "reflection"], list[float]]
    wanted = {"zeros": [jnp.nan] * 2, "border": [7, 4], "reflection": [jnp.nan] * 2}
    for padding, infinite in wanted.items():
        found = grid_sample(X, grid, padding=padding)
        np.testing.assert_array_equal(found[0, :, 0], [jnp.nan, *infinite])
        nearest = grid_sample(X, grid, padding=padding, mode="nearest")
        np.testing.assert_array_equal(nearest[0, :, 0], jnp.nan_to_num(found[0, :, 0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "bicubic"}, "grid_sample: mode='bicubic' is unknown. Allowed are bilinear, nearest."),
        ({"padding": "wrap"}, "padding='wrap' is unknown. Allowed are zeros, border, reflection."),
        ({"grid": jnp.zeros((2, 5, 2))}, r"a map of shape \(1, 3, 4, 1\) and a grid of shape \(2, 5, 2\)"),
        ({"grid": jnp.zeros((1, 5, 3))}, r"and a grid of shape \(1, 5, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(settings, message):
    with pytest.raises(TaskError, match=message):
        grid_sample(**{"x": X, "grid": jnp.zeros((1, 5, 2)), **settings})
