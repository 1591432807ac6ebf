"""The estimates of the noise scale: the formulas of McCandlish et al. 2018, their bias, and the interval."""

import dataclasses
import math

import numpy as np
import pytest

from engine.tuning.noise import GradientNorms, fieller, noise_scale, trade_offs

SIZE, ROWS, COUNT = 20, 8, 24
TRUE = np.full(SIZE, 0.4)
SPREAD = np.linspace(0.5, 1.5, SIZE)
EXACT = (SPREAD**2).sum() / (TRUE @ TRUE)


def norms(gradients, weights=None, rows=ROWS):
    weights = np.ones(len(gradients)) if weights is None else weights
    total = weights @ gradients
    return GradientNorms((gradients**2).sum(1), gradients @ total, weights, rows, np.ones(len(weights)))


def draw(rng, true=TRUE, per_row=1.0, weights=None):
    """Returns the gradients of batches: the true one with the noise of ROWS examples, or of the given weights."""
    sizes = np.full(COUNT, ROWS) if weights is None else weights * per_row
    return true + rng.normal(size=(COUNT, SIZE)) * SPREAD / np.sqrt(sizes)[:, None]


def test_estimates_are_the_formulas_of_the_paper():
    """Appendix A.1: |G|^2 = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small), and S likewise."""
    gradients = draw(np.random.default_rng(0))
    big = np.linalg.norm(gradients.mean(0)) ** 2
    small = np.mean([np.linalg.norm(gradient) ** 2 for gradient in gradients])
    b_small, b_big = ROWS, ROWS * COUNT
    squared = 1 / (b_big - b_small) * (b_big * big - b_small * small)
    trace = 1 / (1 / b_small - 1 / b_big) * (small - big)
    found = noise_scale(7, norms(gradients))
    assert (found.squared_gradient, found.trace) == pytest.approx((squared, trace), rel=1e-12)
    assert found.noise_scale == pytest.approx(trace / squared) and found.step == 7


@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_have_no_bias_and_the_interval_covers(weighted):
    rng, repeats = np.random.default_rng(1), 400
    weights = rng.uniform(2, 14, COUNT) if weighted else None
    rows = ROWS if weights is None else round(weights.mean())
    found = [noise_scale(0, norms(draw(rng, weights=weights), weights, rows)) for _ in range(repeats)]
    for name, exact in (("squared_gradient", TRUE @ TRUE), ("trace", (SPREAD**2).sum())):
        values = np.array([getattr(each, name) for each in found])
        # The weights are examples here, of which a batch has `rows` up to rounding.
        scale = 1 if weights is None or name == "squared_gradient" else rows / weights.mean()
        assert abs(values.mean() - scale * exact) < 4 * values.std() / math.sqrt(repeats)
    covered = np.mean([each.interval[0] <= EXACT <= each.interval[1] for each in found])
    assert 0.92 <= covered <= 0.99


def test_jackknife_leaves_out_each_batch():
    """The interval of |G|^2 is that of the estimates which are computed anew without each batch."""
    gradients, weights = draw(np.random.default_rng(2)), np.random.default_rng(3).uniform(1, 2, COUNT)
    found = noise_scale(0, norms(gradients, weights))
    kept = [np.arange(COUNT) != i for i in range(COUNT)]
    left_out = [noise_scale(0, norms(gradients[k], weights[k])).squared_gradient for k in kept]
    error = math.sqrt((COUNT - 1) / COUNT * np.square(np.array(left_out) - np.mean(left_out)).sum())
    low, high = found.squared_interval
    assert (high - low) / 2 == pytest.approx(2.0687 * error, rel=1e-4)  # t quantile of 23 degrees of freedom


def test_batches_without_replacement_give_the_variance_of_the_whole_data():
    rng, size = np.random.default_rng(5), 32
    data = TRUE + rng.normal(size=(size, SIZE)) * SPREAD
    exact = data.var(axis=0, ddof=1).sum()
    values = []
    for _ in range(200):
        drawn = np.array([data[rng.permutation(size)[:ROWS]].mean(0) for _ in range(COUNT)])
        values.append(noise_scale(0, dataclasses.replace(norms(drawn), share=ROWS / size)).trace)
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / math.sqrt(200)


def test_gradient_that_could_be_zero_gives_no_noise_scale():
    found = noise_scale(0, norms(draw(np.random.default_rng(4), true=np.zeros(SIZE))))
    assert found.noise_scale is None and found.squared_interval[0] < 0 < found.squared_interval[1]
    assert found.interval[1] == math.inf


def test_interval_of_a_ratio_is_that_of_fieller():
    low, high = fieller(10.0, 5.0, 1.0, 0.0, 0.25, 2.0)
    for ratio in (low, high):  # both ends are where the difference is as large as its quantile
        assert (10 - ratio * 5) ** 2 == pytest.approx(4 * (1 + ratio**2 * 0.25))
    assert low < 2 < high
    least, most = fieller(10.0, 0.5, 1.0, 0.0, 1.0, 2.0)
    assert most == math.inf and (10 - least * 0.5) ** 2 == pytest.approx(4 * (1 + least**2))


def test_trade_offs_are_those_of_the_paper():
    rows = trade_offs(64, 100)
    assert [size for size, _, _ in rows] == [8, 16, 32, 64, 100, 128, 256, 512]
    assert (64, 2, 2) in rows
    assert all((steps - 1) * (many - 1) == pytest.approx(1) for _, steps, many in rows)  # equation 2.11
