"""Metrics of forecasts of Argoverse 2, compared with av2: random, tied, exact and far forecasts."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import evaluated, largest_difference
from benchmarks.references.rows import Row
from engine import metrics

AGENTS, MODES, STEPS = 4, 6, 10
NAMES = ("min_ade", "min_fde", "miss_rate", "brier_min_ade", "brier_min_fde")
TOLERANCE = 1e-6  # of an error: relative above 1 m, since the engine computes in float32


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each number."""
    sets = [forecast_set(seed) for seed in range(cases)]
    wanted = evaluated(environment, {"sets": sets})
    pairs: dict[str, list[tuple[float, float]]] = {}
    for one, result in zip(sets, wanted, strict=True):
        for name, found in compared(one, result).items():
            pairs.setdefault(name, []).extend(found)
    for name, found in pairs.items():
        yield Row(name, len(sets), largest_difference(found), TOLERANCE)


def compared(one: dict[str, Any], results: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Returns name -> the numbers of each agent, of the engine and of av2, both divided by max(1, that of av2)."""
    found = {name: _of_agents(one, "endpoint", name) for name in NAMES}
    found["smallest_ade"] = _of_agents(one, "each", "min_ade")
    pairs = {}
    for name, values in found.items():
        wanted = np.array([result[name] for result in results])
        scale = np.maximum(1, np.abs(wanted))
        pairs[name] = list(zip((values / scale).tolist(), (wanted / scale).tolist(), strict=True))
    return pairs


def _of_agents(one: dict[str, Any], best: str, name: str) -> np.ndarray:
    forecasts, futures, probabilities = (np.array(one[x]) for x in ("forecasts", "futures", "probabilities"))
    metric = _metric(forecasts, futures, probabilities, best)
    return np.array([each[name] for each in metric.compute_each(name)])


@functools.partial(jax.jit, static_argnums=3)
def _metric(forecasts: np.ndarray, futures: np.ndarray, probabilities: np.ndarray, best: str) -> Any:
    return metrics.BestOfModes.of(forecasts, futures, best=best, probabilities=probabilities)


def forecast_set(seed: int) -> dict[str, Any]:
    """Returns forecasts of agents; those of odd seeds are on a grid, so that errors are often equal.

    Every number is one of float32. On the grid, squares of errors at the end are integers, which are exact in both.
    """
    rng = np.random.default_rng(seed)
    futures = rng.normal(0, 1, (AGENTS, STEPS, 2)).cumsum(1)
    errors = rng.normal(0, rng.choice([0.01, 0.3, 3]), (AGENTS, MODES, STEPS, 2)).cumsum(2)
    probabilities = rng.dirichlet(np.full(MODES, rng.choice([0.1, 1, 10])), AGENTS)
    if seed % 2:
        futures, errors = futures.round(), rng.integers(-2, 3, errors.shape)  # 2 m at the end is no miss
        errors[rng.random((AGENTS, MODES)) < 0.3] = 0
        probabilities = rng.choice([0, 0.25, 0.5, 1], (AGENTS, MODES))
    if seed % 5 == 0:
        errors[:, 1] = errors[:, 0]  # equal forecasts with other probabilities
    if seed % 14 == 7:
        errors = errors + 1024  # metres: all far away, and still exact
    futures = futures.astype(np.float32)
    forecasts = (futures[:, None] + errors).astype(np.float32)
    numbers = {"forecasts": forecasts, "futures": futures, "probabilities": probabilities.astype(np.float32)}
    return {name: x.tolist() for name, x in numbers.items()}
