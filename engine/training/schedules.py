"""Learning-rate schedules as functions of the step and of numbers that the compiled program takes as an argument.

The numbers are the learning rate and what is derived from it, so another learning rate needs no other program. Lengths
in steps are constants of the program: XLA would round a division by an argument differently.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.duration import MAX_STEPS, Duration, RunSize
from engine.base.errors import ConfigError, FieldError
from engine.config.schedules import (
    CYCLE_SHAPES,
    DECAY_SHAPE,
    RISE,
    START,
    arguments_path,
    check_function,
    decay_steps,
    function_of,
)
from engine.config.schema import Optimizer
from engine.config.setting import SCHEDULES
from engine.config.target import build
from engine.metrics.values import describe_value

type Number = Any
"""A float on the host, or a traced float32 scalar."""
type Count = jax.Array | int
type Formula = Callable[[Sequence[Number], Count], Number]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate: `schedule(step)`, like a schedule of optax."""

    numbers: tuple[Number, ...]
    formula: Formula

    def __call__(self, step: Count) -> Number:
        """Returns the learning rate of a step, counted from 0."""
        return self.formula(self.numbers, step)

    def with_numbers(self, numbers: Sequence[Number]) -> "Schedule":
        """Returns the schedule with other numbers, such as traced scalars."""
        return dataclasses.replace(self, numbers=tuple(numbers))

    def scaled(self, factor: float) -> "Schedule":
        """Returns the schedule times a factor, which is one more number."""
        if factor == 1.0:
            return self
        if len(self.numbers) == 1 and self.formula is _constant:
            return self.with_numbers([self.numbers[0] * factor])
        return Schedule((*self.numbers, factor), lambda x, step: self.formula(x[:-1], step) * x[-1])

    def every(self, period: int) -> "Schedule":
        """Returns the schedule as a function of the number of earlier updates, of which each n-th step makes one."""
        if period == 1:
            return self
        return Schedule(self.numbers, lambda x, count: self.formula(x, count * period + (period - 1)))


def build_schedule(config: Optimizer, size: RunSize, where: str = "optimizer") -> Schedule:
    """Returns the schedule of a section: a linear warm-up from 0 to the peak, and then the shape of `config.schedule`.

    Args:
        config: the section, or `Optimizer.of_group`.
        size: sizes of the run.
        where: path of the section in the config.

    Raises:
        ConfigError: the warm-up is too long, or the function of the schedule is wrong.
    """
    warmup = config.warmup.steps(size.batch_size, size.dataset_size)
    if warmup > MAX_STEPS:
        raise ConfigError(f"{where}.warmup: {warmup} steps, allowed are at most {MAX_STEPS}. Write a shorter duration.")
    after = _SHAPES.get(config.schedule, _function)(config, size, warmup, where)
    return _warmed_up(config.learning_rate, warmup, after) if warmup else after


def _warmed_up(peak: float, steps: int, after: Schedule) -> Schedule:
    """Returns peak * step / steps before step `steps` (Goyal et al. 2017, arXiv:1706.02677), then `after`.

    The formula is that of `optax.linear_schedule`, so that earlier runs resume with equal bits.
    """

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        fraction = 1 - jnp.clip(step, 0, steps) / steps
        rise = (0.0 - numbers[0]) * fraction + numbers[0]
        return jnp.where(step < steps, rise, after.formula(numbers[1:], step - steps))

    return Schedule((peak, *after.numbers), formula)


def frozen_steps(config: Optimizer, group: str, size: RunSize) -> int:
    """Returns the step from which on a group is trained, at which its schedule begins."""
    until = config.groups[group].frozen_until
    return 0 if until is None else until.steps(size.batch_size, size.dataset_size)


def constant(rate: float) -> Schedule:
    """Returns a learning rate that never changes."""
    return Schedule((rate,), _constant)


def _constant(numbers: Sequence[Number], step: Count) -> Number:
    return numbers[0]


def _constant_schedule(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns the peak."""
    return Schedule((config.learning_rate,), _constant)


def _linear(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns the line from the peak to the final rate at the last step (`optax.linear_schedule`)."""
    peak, end, rest = config.learning_rate, config.learning_rate * config.final_scale, _rest(size, warmup)

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        return numbers[0] * (1 - jnp.clip(step, 0, rest) / rest) + numbers[1]

    return Schedule((peak - end, end), formula)


def _cosine(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns half a cosine from the peak to the final rate: SGDR without restarts (Loshchilov & Hutter 2016,
    arXiv:1608.03983, equation 5), as `optax.cosine_decay_schedule`.
    """
    rest = float(_rest(size, warmup))

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        peak, fall, end = numbers
        step = jnp.minimum(float(step) if isinstance(step, int) else step, rest)
        return peak * (fall * (0.5 * (1 + jnp.cos(jnp.pi * step / rest))) + end)

    return Schedule((config.learning_rate, 1 - config.final_scale, config.final_scale), formula)


def _warmup_stable_decay(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns the peak, and in the last `decay` steps a decay to the final rate.

    Zhai et al. 2021 (arXiv:2106.04560, "cooldown") and Hu et al. 2024 (arXiv:2404.06395, "WSD"). The shape "sqrt" is
    1 - sqrt(x) of Hägele et al. 2024 (arXiv:2405.18392), where x is the decayed share of the steps.
    """
    peak, end, decay = config.learning_rate, config.learning_rate * config.final_scale, decay_steps(config, size)
    begin = _rest(size, warmup) - decay
    left = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
        "sqrt": lambda x: 1 - jnp.sqrt(x),
    }[str(config.schedule_arguments.get("shape", DECAY_SHAPE))]

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        peak, fall, end = numbers
        decayed = fall * left(jnp.clip(step - begin, 0, decay) / decay) + end
        return jnp.where(step < begin, peak, decayed)

    return Schedule((peak, peak - end, end), formula)


def _inverse_sqrt(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns peak * sqrt(t / (t + n)) at n steps after the warm-up, with the timescale t.

    With t equal to the warm-up w it is peak * sqrt(w / step) (Vaswani et al. 2017, arXiv:1706.03762, equation 3).
    """
    given = config.schedule_arguments.get("timescale")
    steps = Duration.parse(given).steps(size.batch_size, size.dataset_size) if isinstance(given, str) else warmup

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        return numbers[0] * jnp.sqrt(steps / (steps + jnp.maximum(step, 0.0)))

    return Schedule((config.learning_rate,), formula)


def _piecewise(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns the peak times the factor of the latest boundary, counted from step 0 (He et al. 2015, arXiv:1512.03385,
    divides the rate by 10 twice).
    """
    scales: Any = config.schedule_arguments["scales"]
    steps = {Duration.parse(time).steps(size.batch_size, size.dataset_size): x for time, x in scales.items()}
    begins = sorted(steps)

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        rate = numbers[0]
        for begin, later in zip(begins, numbers[1:], strict=True):
            rate = jnp.where(step < begin - warmup, rate, later)
        return rate

    return Schedule((config.learning_rate, *(config.learning_rate * steps[begin] for begin in begins)), formula)


def _one_cycle(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns a rise to the peak and then a fall to the final rate (Smith & Topin 2018, arXiv:1708.07120).

    With the shape cosine it is `optax.cosine_onecycle_schedule`. Smith & Topin have lines.
    """
    arguments: Mapping[str, Any] = config.schedule_arguments
    rest, peak = _rest(size, warmup), config.learning_rate
    rise = int(arguments.get("rise", RISE) * rest)
    fall = max(rest - rise, 1)
    left = {"cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)), "linear": lambda x: 1 - x}[
        str(arguments.get("shape", CYCLE_SHAPES[0]))
    ]

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        peak, start, end = numbers
        rising = peak * (1 + (start - 1) * left(jnp.clip(step, 0, rise) / max(rise, 1)))
        falling = peak * (end + (1 - end) * left(jnp.clip(step - rise, 0, fall) / fall))
        return jnp.where(step < rise, rising, falling)

    return Schedule((peak, arguments.get("start", START), config.final_scale), formula)


def _warm_restarts(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns cycles of half a cosine from the peak to the final rate, each `factor` times as long as the one before:
    SGDR (Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5).
    """
    begins = np.array(cycle_begins(config, size, warmup)[:-1])
    lengths = np.diff(cycle_begins(config, size, warmup))
    is_periodic = config.schedule_arguments.get("factor", 1) == 1

    def formula(numbers: Sequence[Number], step: Count) -> Number:
        peak, fall, end = numbers
        step = jnp.maximum(step, 0)
        if is_periodic:
            x = (step % int(lengths[0])) / int(lengths[0])
        else:
            cycle = jnp.searchsorted(begins, step, side="right") - 1
            x = (step - jnp.asarray(begins)[cycle]) / jnp.asarray(lengths)[cycle]
        return peak * (fall * (0.5 * (1 + jnp.cos(jnp.pi * x))) + end)

    return Schedule((config.learning_rate, 1 - config.final_scale, config.final_scale), formula)


def cycle_begins(config: Optimizer, size: RunSize, warmup: int) -> list[int]:
    """Returns the steps after the warm-up at which the cycles of warm_restarts begin, up to the first after the run.

    All cycles of one length are given by the first one.
    """
    arguments: Mapping[str, Any] = config.schedule_arguments
    length = min(Duration.parse(arguments["first"]).steps(size.batch_size, size.dataset_size), MAX_STEPS)
    factor, begins = arguments.get("factor", 1), [0, length]
    while factor > 1 and begins[-1] < size.total_steps - warmup:
        length *= factor
        begins.append(min(begins[-1] + length, MAX_STEPS))
    return begins


def _function(config: Optimizer, size: RunSize, warmup: int, where: str) -> Schedule:
    """Returns the peak times the function of the step that the target returns, in steps after the warm-up."""
    path = arguments_path(where)
    lengths = dict.fromkeys(check_function(config, where), _rest(size, warmup))
    found = build(function_of(config), path, **lengths)
    if not callable(found):
        problem = f"{config.schedule} returned {describe_value(found)}, which is not a function of the step"
        raise FieldError(f"{where}.schedule", problem, f"Name a function such as those of optax: {SCHEDULE_EXAMPLE}.")
    return Schedule((config.learning_rate,), lambda numbers, step: numbers[0] * found(step))


SCHEDULE_EXAMPLE = "optax.schedules.polynomial_schedule"

_SHAPES: Mapping[str, Callable[[Optimizer, RunSize, int, str], Schedule]] = {
    "constant": _constant_schedule,
    "linear": _linear,
    "cosine": _cosine,
    "warmup_stable_decay": _warmup_stable_decay,
    "inverse_sqrt": _inverse_sqrt,
    "piecewise": _piecewise,
    "one_cycle": _one_cycle,
    "warm_restarts": _warm_restarts,
}
assert set(_SHAPES) == set(SCHEDULES)


def _rest(size: RunSize, warmup: int) -> int:
    """Returns the number of steps after the warm-up, at least 1."""
    return max(size.total_steps - warmup, 1)


def message(config: Optimizer, schedule: Schedule, size: RunSize, where: str = "optimizer") -> str | None:
    """Returns a sentence about the learning rates of a function that the user chose, or a cycle that does not end.

    None for the other schedules.
    """
    if config.schedule == "warm_restarts":
        return _unfinished_cycle(config, size, where)
    if config.schedule in SCHEDULES:
        return None
    last = max(size.total_steps - 1, 0)
    rates = [f"{float(schedule(step)):.3g} at step {step}" for step in dict.fromkeys((0, last // 2, last))]
    return f"{where}.schedule: {config.schedule} times learning_rate = {config.learning_rate:g} is {', '.join(rates)}"


def _unfinished_cycle(config: Optimizer, size: RunSize, where: str) -> str | None:
    """Returns a sentence if the run ends within a cycle of warm_restarts, so not at the final rate."""
    warmup = config.warmup.steps(size.batch_size, size.dataset_size)
    begins, last = cycle_begins(config, size, warmup), size.total_steps - warmup
    if len(begins) == 2:  # cycles of one length, or a single one
        begins = [0, begins[1] * max(-(-last // begins[1]), 1)]
    if begins[-1] <= last:
        return None
    return (
        f"{where}.schedule: the run ends at step {size.total_steps}, within a cycle of warm_restarts that ends at step "
        f"{warmup + begins[-1]}: its last learning rate is not the final one"
    )
