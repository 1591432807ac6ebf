"""The curve of one learning-rate range test: where the loss falls fastest, where it is lowest, where it rises again.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3, trains once with a
growing learning rate. The suggestion is a tenth of the rate at the lowest loss, as in Howard & Gugger 2020, "fastai"
(arXiv:2002.04688). Needs numpy alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TENTH = 0.1
RISE = 4.0
"""A loss that is above this multiple of its minimum, and half-way back to its start, has diverged. The divergence
begins where the loss is above the multiple for the last time before."""
BAD_IN_A_ROW = 3
"""So many losses in a row that are not finite are a divergence; a single one may be a bad example."""
_WINDOW = 0.07  # of the steps: length of the running median, which does not blur the edge of a divergence
_CERTAIN = 5.0  # standard errors by which the loss has to fall and to rise
_SMALLEST_FALL = 1e-3  # of the first loss
_SMALLEST_RISE = 0.05  # of the fall

type Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeCurve:
    """The result of one range test.

    Attributes:
        seed: `train.seed` of the test.
        learning_rates: learning rate of each step.
        losses: loss of each step, before the update; NaN where it is not finite.
        smoothed: running median of the losses, up to the divergence.
        minimum: learning rate at the lowest smoothed loss; None if the loss has not fallen.
        steepest: learning rate at which the smoothed loss falls fastest; None likewise.
        diverged: learning rate at which the divergence begins; None if there is none.
        suggestion: a tenth of `minimum`; None where `problem` says why.
        problem: why there is no suggestion, and which end of the range to extend.
    """

    seed: int
    learning_rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]
    minimum: float | None
    steepest: float | None
    diverged: float | None
    suggestion: float | None
    problem: str


def analyse(learning_rates: Sequence[float], losses: Sequence[float], steps: int, seed: int = 0) -> RangeCurve:
    """Returns what the curve of a test says. Steps after those that show a divergence do not change it.

    Args:
        learning_rates: learning rate of each step, growing.
        losses: loss of each step; not finite where the update was skipped.
        steps: steps of the whole range, of which a test that ended early has fewer.
        seed: seed of the test.
    """
    rates, values = np.asarray(learning_rates, np.float64), np.asarray(losses, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    end = _first_series(np.isnan(values))
    half = max(2, round(_WINDOW * steps / 2))
    finite = np.flatnonzero(~np.isnan(values[:end]))
    if len(finite) <= 2 * half:
        problem = f"only {len(finite)} losses are finite. Start lower, with a smaller --from"
        return RangeCurve(seed, rates.tolist(), values.tolist(), [], None, None, None, None, problem)
    whole = np.interp(np.arange(end), finite, values[finite])
    median = _running_median(whole, half)
    first = float(median[: half + 1].mean())
    blown = end < len(values)
    complete = blown or len(values) >= steps
    crossed = _first_above(median if complete else median[:-half], first)
    kept = len(values) if not (blown or crossed is not None) else end + BAD_IN_A_ROW
    if crossed is not None:
        kept, blown, median = crossed + half + 1, True, median[: crossed + 1]
    rates, values = rates[:kept], values[:kept]
    at = int(np.argmin(median))
    fall, error = first - float(median[at]), _standard_error(whole[: len(median)] - median, half)
    fell = at > half and fall > max(_CERTAIN * error, _SMALLEST_FALL * abs(first))
    rise = float(median[-half - 1 :].mean()) - float(median[at])
    problem = _problem(fell, blown or rise > max(_CERTAIN * error, _SMALLEST_RISE * fall), rates)
    return RangeCurve(
        seed=seed,
        learning_rates=rates.tolist(),
        losses=values.tolist(),
        smoothed=median.tolist(),
        minimum=float(rates[at]) if fell else None,
        steepest=_steepest(rates, median[: at + 1], half) if fell else None,
        diverged=float(rates[end if crossed is None else _onset(median)]) if blown else None,
        suggestion=TENTH * float(rates[at]) if not problem else None,
        problem=problem,
    )


def _problem(fell: bool, rose: bool, rates: Floats) -> str:
    if fell and rose:
        return ""
    low, high = (f"{rate:.3g}" for rate in (rates[0], rates[-1]))
    if fell:
        return f"the loss has not risen again up to {high}. Extend the range upwards: --to={rates[-1] * 100:.3g}"
    if rose:
        return f"the loss has never fallen from {low} on, only risen. Extend it downwards: --from={rates[0] / 100:.3g}"
    return (
        f"the loss has neither fallen nor risen between {low} and {high}. Extend the range upwards: "
        f"--to={rates[-1] * 100:.3g}, or check that the model learns at all"
    )


def _first_series(bad: npt.NDArray[np.bool_]) -> int:
    """Returns the index of the first BAD_IN_A_ROW True values in a row; fewer suffice at the end."""
    for start in np.flatnonzero(bad):
        if bad[start : start + BAD_IN_A_ROW].all():
            return int(start)
    return len(bad)


def _running_median(values: Floats, half: int) -> Floats:
    """Returns the median of each value and `half` values on each side; at both ends, of fewer."""
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _first_above(median: Floats, first: float) -> int | None:
    """Returns the first index at which the loss has diverged from its minimum so far; None if it never has."""
    best = np.minimum.accumulate(median)
    limit = np.maximum(_multiple(best), (np.maximum(first, best) + best) / 2)
    above = np.flatnonzero(median > limit)
    return int(above[0]) if len(above) else None


def _onset(median: Floats) -> int:
    """Returns the index at which the divergence begins that is certain at the last index."""
    return int(np.flatnonzero(median <= _multiple(float(median.min())))[-1]) + 1


def _multiple[T: (float, Floats)](best: T) -> T:
    return best + (RISE - 1) * abs(best)


def _standard_error(residuals: Floats, half: int) -> float:
    """Returns the standard error of a running median; the spread of the residuals is measured robustly."""
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    return spread * math.sqrt(math.pi / 2 / (2 * half + 1))


def _steepest(rates: Floats, falling: Floats, half: int) -> float:
    """Returns the learning rate at which the smoothed loss falls most per decade, between its start and its minimum."""
    distance = min(2 * half, len(falling) - 1)
    falls = falling[:-distance] - falling[distance:]
    return float(rates[int(np.argmax(falls)) + distance // 2])
