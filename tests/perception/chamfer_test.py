import jax
import jax.numpy as jnp
import numpy as np

from engine.perception import chamfer_distance
from tests.perception.goldens import differing

RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=(3, n, 2)).astype(np.float32) for n in (6, 9))
VALID = (RNG.random((3, 6)) < 0.6, RNG.random((3, 9)) < 0.6)
RUN = jax.jit(chamfer_distance)


def test_distances_and_gradients_equal_pytorch():
    assert differing("chamfer", 2) == []


def test_padding_changes_nothing():
    a, b = jnp.where(VALID[0][..., None], A, jnp.nan), jnp.where(VALID[1][..., None], B, jnp.inf)
    found, pull = jax.vjp(lambda a, b: RUN(a, b, *VALID), a, b)
    for gradient, valid in zip(pull(jnp.ones(3)), VALID, strict=True):
        assert jnp.isfinite(gradient).all() and (gradient[~valid] == 0).all()
    for row in range(3):
        a, b = A[row][VALID[0][row]], B[row][VALID[1][row]]
        square = ((a[:, None] - b) ** 2).sum(-1)
        np.testing.assert_allclose(found[row], square.min(1).mean() + square.min(0).mean(), rtol=1e-5)


def test_empty_set_gives_zero_and_finite_gradients():
    a, b = jnp.asarray(A), jnp.asarray(B)
    value, gradient = jax.jit(jax.value_and_grad(lambda a: chamfer_distance(a, b, jnp.zeros((3, 6), bool)).sum()))(a)
    assert value == 0 and (gradient == 0).all()


def test_point_that_is_not_a_number_makes_the_distance_of_its_example_nan():
    found = RUN(jnp.asarray(A).at[1, 2, 0].set(jnp.nan), B)
    assert jnp.isnan(found).tolist() == [False, True, False]


def test_points_far_from_the_origin_keep_their_digits():
    far = jnp.array([[[5000.0, 5000.0]]])
    np.testing.assert_allclose(RUN(far, far + 0.25), [2 * 2 * 0.0625])
