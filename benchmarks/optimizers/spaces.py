"""The spaces of the tuning, and their points: as many for each optimizer, at the same places of the unit cube.

- The learning rate: `TRIALS` values over `DECADES` decades around the usual one, evenly spaced in the logarithm.
- The weight decay: the range of the optimizer, in the logarithm. The warm-up: a fraction of the steps in `WARMUP`.

The learning rate is an argument of a compiled program, and the other settings are constants of it. So the points have
`PROGRAMS` quasi-random pairs (weight decay, warm-up), each with every `PROGRAMS`-th learning rate, so that the rates of
each pair cover the whole range.
"""

from collections.abc import Mapping

import numpy as np

from benchmarks.optimizers.optimizers import OptimizerSpec
from benchmarks.optimizers.rows import Value

TRIALS, PROGRAMS = 8, 2
DECADES = 2.0
WARMUP = (0.02, 0.2)
SEED = 0  # of the quasi-random pairs


def points(optimizer: OptimizerSpec, trials: int = TRIALS, programs: int = PROGRAMS) -> list[dict[str, Value]]:
    """Returns the settings of the tuning runs of an optimizer, ordered by program."""
    pairs = _quasi_random(programs)
    found: list[dict[str, Value]] = []
    for program in range(programs):
        decay, warmup = (float(x) for x in pairs[program])
        for place in range(program, trials, programs):
            rate = optimizer.rate * 10 ** (DECADES * ((place + 0.5) / trials - 0.5))
            settings: dict[str, Value] = {"learning_rate": _short(rate), "warmup": _between(WARMUP, warmup)}
            if optimizer.weight_decay is not None:
                low, high = optimizer.weight_decay
                settings["weight_decay"] = _short(low * (high / low) ** decay)
            found.append(settings)
    return found


def _quasi_random(count: int) -> np.ndarray:
    """Returns points of the unit square that fill it evenly, `[count, 2]`: an additive recurrence (Roberts 2018)."""
    plastic = 1.32471795724474602596
    shift = np.random.default_rng(SEED).random(2)
    return (shift + np.arange(count)[:, None] * np.array([1 / plastic, 1 / plastic**2])) % 1


def program_key(settings: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Returns what the settings of runs that share a compiled program have in common."""
    return tuple(sorted((name, value) for name, value in settings.items() if name != "learning_rate"))


def _between(limits: tuple[float, float], share: float) -> float:
    low, high = limits
    return _short(low + (high - low) * share)


def _short(value: float) -> float:
    """Returns a number with three digits, which is the same after it was written and read."""
    return float(f"{value:.3g}")
