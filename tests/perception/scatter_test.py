import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.perception import scatter_max, scatter_mean, scatter_sum
from tests.perception.goldens import differing

CELLS, POINTS, WIDTH = 6, 40, 3
RNG = np.random.default_rng(0)
INDEX = jnp.asarray(RNG.integers(-2, CELLS + 2, (2, POINTS)), jnp.int32)


@jax.jit
def differentiated(x, index, weights):
    """Returns the gradient of x, and the maximum without and with a gradient."""
    values, pull = jax.vjp(lambda x: scatter_max(x, index, CELLS), x)
    return pull(weights)[0], scatter_max(x, index, CELLS), values


def test_values_and_gradients_equal_pytorch():
    assert differing("scatter", 6) == []


def largest_by_loop(x, index, weights):
    """Returns the largest values, and the gradient of the first point that has each of them."""
    values, gradient = np.zeros((len(x), CELLS, WIDTH)), np.zeros_like(x)
    for batch, row in enumerate(index):
        for cell in range(CELLS):
            of = np.flatnonzero(row == cell)
            for k in range(WIDTH if len(of) else 0):
                best = of[x[batch, of, k].argmax()]  # the first one
                values[batch, cell, k] = x[batch, best, k]
                gradient[batch, best, k] = weights[batch, cell, k]
    return values, gradient


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_gradient_of_the_maximum_belongs_to_the_first_of_equal_points(dtype):
    x = RNG.integers(-3, 2, (2, POINTS, WIDTH)).astype(np.float32)
    weights = RNG.integers(1, 9, (2, CELLS, WIDTH)).astype(np.float32)
    found, plain, values = differentiated(jnp.asarray(x, dtype), INDEX, jnp.asarray(weights, dtype))
    wanted, gradient = largest_by_loop(x, np.asarray(INDEX), weights)
    assert values.dtype == dtype and (wanted < 0).any() and (wanted == 0).any()
    np.testing.assert_array_equal(values.astype(jnp.float32), wanted)
    np.testing.assert_array_equal(found.astype(jnp.float32), gradient)
    np.testing.assert_array_equal(plain, values)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_is_the_largest_value_of_its_cell_with_and_without_a_gradient(dtype):
    x = jnp.zeros((2, POINTS, WIDTH), dtype).at[0, :4, 0].set(jnp.array([1, -jnp.nan, 3, 4], dtype))
    index = jnp.full((2, POINTS), CELLS).at[0, :4].set(jnp.array([0, 0, 0, 1]))
    _, *both = differentiated(x, index, jnp.zeros((2, CELLS, WIDTH), dtype))
    for found in both:
        np.testing.assert_array_equal(found[0, :, 0].astype(jnp.float32), [np.nan, 4, 0, 0, 0, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_of_both_signs_are_equal_and_cells_of_minus_infinity_have_no_gradient(dtype):
    x = jnp.zeros((2, POINTS, WIDTH), dtype).at[0, :4, 0].set(jnp.array([-0.0, 0, -jnp.inf, -jnp.inf], dtype))
    index = jnp.full((2, POINTS), CELLS).at[0, :4].set(jnp.array([0, 0, 1, 1]))
    gradient, _, values = differentiated(x, index, jnp.ones((2, CELLS, WIDTH), dtype))
    assert gradient[0, :4, 0].tolist() == [1, 0, 0, 0] and not values[0, :2, 0].any()


def test_mean_of_half_precision_is_computed_in_float32():
    x, index = jnp.full((1, 1000, 1), 1.01, jnp.bfloat16), jnp.zeros((1, 1000), jnp.int32)
    assert jax.jit(lambda x: scatter_mean(x, index, 2))(x)[0, :, 0].tolist() == [x[0, 0, 0].item(), 0]
    assert scatter_sum(x, index, 2).dtype == jnp.bfloat16
