"""Factors of the losses of datasets: fixed, or changing linearly between times of the run."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from engine.base.duration import Duration
from engine.base.errors import DataError
from engine.data.context import Context
from engine.data.sampling.share_schedule import Percent, Times

type Weight = float | Mapping[str, float]
"""A factor, or time -> factor, such as {"0 steps": 0.1, "1000 steps": 1.0} or with "50%"."""
UNITS = ("steps", "epochs", "%")
"""Units of the times, of which a schedule has one."""


class LossWeights:
    """Factors by name of a dataset.

    Args:
        weights: name -> factor, from 0, or time -> factor.

    Raises:
        DataError: a factor is not allowed, times are not sorted, or have several or other units.
        ConfigError: a time is not a duration.
    """

    def __init__(self, weights: Mapping[str, Weight]):
        self._points: dict[str, tuple[str, list[float], list[float]]] = {}  # name -> unit, times, factors
        for name, weight in weights.items():
            where = f"engine.Joint: weights of {name}"
            times = Times.parse(weight if isinstance(weight, Mapping) else {"0 steps": weight}, where)
            values = [_factor(value, where) for _, value in times.points]
            at, units = [float(time.value) for time, _ in times.points], {_unit(time) for time, _ in times.points[1:]}
            if len(units) > 1 or not units <= set(UNITS):
                raise DataError(f"{where}: times in {' and '.join(sorted(units))}. Use one of {', '.join(UNITS)}.")
            if sorted(set(at)) != at:
                raise DataError(f"{where}: the times are not increasing. Sort them.")
            self._points[name] = (units.pop() if units else "steps", at, values)

    @property
    def names(self) -> list[str]:
        """Names of the datasets with factors."""
        return list(self._points)

    def at(self, name: str, context: Context) -> float | jax.Array:
        """Returns the factor of a dataset in a step; 1 if it has none."""
        if name not in self._points:
            return 1.0
        unit, times, values = self._points[name]
        if len(values) == 1:
            return values[0]
        if unit == "%":
            now = 100 * context.step / context.total_steps
        else:
            now = context.step if unit == "steps" else context.epoch
        return jnp.interp(jnp.asarray(now, jnp.float32), jnp.array(times), jnp.array(values))


def _unit(time: Duration | Percent) -> str:
    return "%" if isinstance(time, Percent) else time.unit


def _factor(value: object, where: str) -> float:
    """Returns a factor. Raises DataError if it is not a number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{where}: found {value!r}. Allowed are numbers from 0, or time -> number.")
    return float(value)
