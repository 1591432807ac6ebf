"""The gradient noise scale and its interval, from the norms of the gradients of a few batches.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv:1812.06162), appendix A.1: from the mean
squared norm of the gradients of small batches, and that of their mean, follow unbiased estimates of |G|^2 and
tr(Sigma). Their ratio is the noise scale, B_simple. Needs numpy and scipy alone.

The interval is that of Fieller (1954) for a ratio, with the covariance of a jackknife over the batches. It has no upper
end if |G|^2 could be 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

FEWEST = 4
"""With fewer batches, a jackknife says too little."""
_LEVEL = 0.95

type Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NoiseScale:
    """The noise scale of a state.

    Attributes:
        step: steps done.
        batches: number of batches whose gradients were computed.
        rows: examples of each.
        loss: mean loss of the batches.
        squared_gradient: estimate of |G|^2, the squared norm of the true gradient; noise may make it negative.
        squared_interval: its 95 % interval.
        trace: estimate of tr(Sigma), the sum of the variances of the gradient of one example.
        noise_scale: tr(Sigma) / |G|^2 in examples; None if |G|^2 could be 0.
        interval: its 95 % interval; the upper end is infinite if |G|^2 could be 0.
    """

    step: int
    batches: int
    rows: int
    loss: float
    squared_gradient: float
    squared_interval: tuple[float, float]
    trace: float
    noise_scale: float | None
    interval: tuple[float, float]


@dataclass(frozen=True)
class GradientNorms:
    """What a measurement keeps of the gradients g_i of n batches, each `[n]`.

    Attributes:
        squared: |g_i|^2.
        dots: g_i . S, with the weighted sum S = sum_i w_i g_i.
        weights: w_i, the weight of the loss of a batch.
        rows: examples of a batch.
        losses: mean loss of each batch.
        share: share of the data in a batch, if each is drawn from all of it without replacement. The variance of its
            gradient is smaller by that share (Cochran 1977, "Sampling Techniques", theorem 2.2).
    """

    squared: Floats
    dots: Floats
    weights: Floats
    rows: int
    losses: Floats
    share: float = 0.0


def noise_scale(step: int, norms: GradientNorms) -> NoiseScale:
    """Returns the noise scale of a state.

    A batch whose loss has the weight w_i has a gradient with the noise Sigma_w / w_i, where Sigma_w is that of a unit
    of weight. So the formulas of the paper hold for the mean of |g_i|^2 weighted by w_i.
    """
    count = len(norms.weights)
    squared, trace = _estimates(norms, norms.squared, norms.weights, float(norms.weights @ norms.dots))
    left_out = np.array([_without(norms, i) for i in range(count)])
    deviations = left_out - left_out.mean(axis=0)
    [[var_squared, between], [_, var_trace]] = ((count - 1) / count * deviations.T @ deviations).tolist()
    quantile = -float(special.stdtrit(count - 1, (1 - _LEVEL) / 2))
    half = quantile * math.sqrt(var_squared)
    certain = squared - half > 0
    return NoiseScale(
        step=step,
        batches=count,
        rows=norms.rows,
        loss=float(np.average(norms.losses, weights=norms.weights)),
        squared_gradient=squared,
        squared_interval=(squared - half, squared + half),
        trace=trace,
        noise_scale=trace / squared if certain else None,
        interval=fieller(trace, squared, var_trace, between, var_squared, quantile),
    )


def _estimates(norms: GradientNorms, squared: Floats, weights: Floats, squared_sum: float) -> tuple[float, float]:
    """Returns the estimates of |G|^2 and tr(Sigma) of some batches; `squared_sum` is |sum_i w_i g_i|^2."""
    total = float(weights.sum())
    small_size, big_size = norms.rows, norms.rows * len(weights)
    small, big = float(weights @ squared) / total, squared_sum / total**2
    squared_gradient = (big_size * big - small_size * small) / (big_size - small_size)
    return squared_gradient, (small - big) / (1 / small_size - 1 / big_size) / (1 - norms.share)


def _without(norms: GradientNorms, i: int) -> tuple[float, float]:
    """Returns the estimates of all batches but one."""
    weight, kept = norms.weights[i], np.arange(len(norms.weights)) != i
    whole = norms.weights @ norms.dots
    squared_sum = float(whole - 2 * weight * norms.dots[i] + weight**2 * norms.squared[i])
    return _estimates(norms, norms.squared[kept], norms.weights[kept], squared_sum)


def fieller(
    numerator: float, denominator: float, var_n: float, covariance: float, var_d: float, quantile: float
) -> tuple[float, float]:
    """Returns the interval of numerator / denominator (Fieller 1954, "Some Problems in Interval Estimation").

    These are the ratios r >= 0 for which numerator - r denominator could be 0. If the denominator could be 0, the upper
    end is infinite.
    """
    a = denominator**2 - quantile**2 * var_d
    b = numerator * denominator - quantile**2 * covariance
    c = numerator**2 - quantile**2 * var_n
    root = b * b - a * c
    if a > 0 and denominator > 0:
        half = math.sqrt(max(root, 0.0))
        return max(0.0, (b - half) / a), (b + half) / a
    if c <= 0 or root < 0:
        return 0.0, math.inf
    # The set is the outside of two roots; for a ratio that is positive, what lies above the positive one.
    roots = sorted(((b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a)) if a else [c / (2 * b)] if b > 0 else []
    positive = [value for value in roots if value > 0]
    return (positive[0] if positive else 0.0), math.inf


def trade_offs(scale: float, configured: int, sizes: Sequence[int] = ()) -> list[tuple[int, float, float]]:
    """Returns batch sizes with the steps and the examples of a run relative to the fewest possible, for the same loss.

    A run with the batch size B takes 1 + B_simple / B times the fewest steps, and 1 + B / B_simple times the fewest
    examples (section 2.3 of the paper).

    Args:
        scale: the noise scale.
        configured: `train.global_batch_size`, which is one of the sizes.
        sizes: other batch sizes; by default powers of two around the noise scale.
    """
    middle = round(math.log2(max(scale, 1)))
    chosen = sizes or [2**power for power in range(max(0, middle - 3), middle + 4)]
    return [(size, 1 + scale / size, 1 + size / scale) for size in sorted({*chosen, configured})]
