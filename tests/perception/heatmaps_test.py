import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.perception import focal_loss, gaussian_radius, heatmap_peaks, heatmap_targets

SHAPE, CLASSES = (9, 12), 3
RNG = np.random.default_rng(0)


def published_radius(height, width, overlap):
    """The rule of CenterNet, line by line."""
    b1 = height + width
    c1 = width * height * (1 - overlap) / (1 + overlap)
    r1 = (b1 + np.sqrt(b1**2 - 4 * c1)) / 2
    b2 = 2 * (height + width)
    c2 = (1 - overlap) * width * height
    r2 = (b2 + np.sqrt(b2**2 - 16 * c2)) / 2
    a3 = 4 * overlap
    b3 = -2 * overlap * (height + width)
    c3 = (overlap - 1) * width * height
    r3 = (b3 + np.sqrt(b3**2 - 4 * a3 * c3)) / 2
    return min(r1, r2, r3)


@pytest.mark.parametrize(("overlap", "least"), [(0.7, 0), (0.1, 2)])
def test_radius_is_that_of_the_published_code(overlap, least):
    sizes = RNG.uniform(0.2, 60, (300, 2)).astype(np.float32)
    wanted = [max(int(published_radius(size[0], size[1], overlap)), least) for size in sizes.astype(np.float64)]
    assert jax.jit(lambda x: gaussian_radius(x, overlap, least))(sizes).tolist() == wanted


def test_targets_equal_gaussians_that_are_drawn_one_by_one():
    centres = RNG.integers(-1, 13, (2, 20, 2))
    radius, labels = RNG.integers(0, 4, (2, 20)), RNG.integers(0, CLASSES, (2, 20))
    valid = RNG.random((2, 20)) < 0.7
    wanted = np.zeros((2, *SHAPE, CLASSES))
    for batch, n in np.argwhere(valid):
        (column, row), r, c = centres[batch, n], radius[batch, n], labels[batch, n]
        if not (0 <= column < SHAPE[1] and 0 <= row < SHAPE[0]):
            continue
        for y in range(max(row - r, 0), min(row + r + 1, SHAPE[0])):
            for x in range(max(column - r, 0), min(column + r + 1, SHAPE[1])):
                value = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                wanted[batch, y, x, c] = max(wanted[batch, y, x, c], value)
    found = jax.jit(lambda *x: heatmap_targets(*x, shape=SHAPE, classes=CLASSES))(centres, radius, labels, valid)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (np.asarray(found) == 1).sum() == (wanted == 1).sum() > 0


def test_focal_loss_and_its_gradient_equal_the_formula_in_float64():
    logits = np.concatenate([RNG.normal(0, 3, 40), [-80, 80, -80, 80]])
    target = np.concatenate([RNG.choice([0, 0.3, 0.9, 1], 40), [1, 1, 0, 0]])

    def formula(z):
        p, log_p, log_q = 1 / (1 + np.exp(-z)), -np.logaddexp(0, -z), -np.logaddexp(0, z)
        return np.where(target == 1, -((1 - p) ** 2) * log_p, -((1 - target) ** 4) * p**2 * log_q)

    run = jax.jit(jax.value_and_grad(lambda z: focal_loss(z, jnp.float32(target)).sum()))
    value, gradient = run(jnp.float32(logits))
    np.testing.assert_allclose(value, formula(logits).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, (formula(logits + 1e-5) - formula(logits - 1e-5)) / 2e-5, atol=1e-5)


def test_peaks_are_the_highest_cells_of_their_window_and_class():
    heat = RNG.normal(size=(2, *SHAPE, CLASSES)).astype(np.float32)
    wide = np.pad(heat, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    count = 60
    found = jax.jit(lambda x: heatmap_peaks(x, count))(heat)
    for batch in range(2):
        wanted = [
            (heat[batch, y, x, c], y, x, c)
            for y, x, c in np.ndindex(*SHAPE, CLASSES)
            if heat[batch, y, x, c] == wide[batch, y : y + 3, x : x + 3, c].max()
        ]
        wanted = sorted(wanted, reverse=True)
        peaks = list(zip(*(np.asarray(x[batch]).tolist() for x in found), strict=True))
        assert peaks[: len(wanted)] == wanted
        assert all(score == -np.inf for score, *_ in peaks[len(wanted) :]) and 10 < len(wanted) < count


def test_more_peaks_than_values_are_an_error():
    with pytest.raises(TaskError, match=r"heatmap_peaks: count = 9, but an example has 8 values\. Allowed are 0 to 8"):
        heatmap_peaks(jnp.zeros((1, 2, 2, 2)), 9)
