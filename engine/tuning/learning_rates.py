"""Suggests a learning rate: range tests with several seeds, the interval of their suggestions, and how sure it is."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from engine.api.prepared import AnyConfig, resolve_config
from engine.base.errors import ConfigError
from engine.cluster import group
from engine.data.adapt import Readable
from engine.experiments.statistics import t_interval
from engine.training.task import Task
from engine.tuning.folder import shared_folder
from engine.tuning.range_curve import RangeCurve
from engine.tuning.range_run import range_config, run_test

MIN_STEPS, MAX_RATE = 30, 1e6
AGREE, ROUGH = 3.0, 10.0
"""Ratio of the ends of an interval up to which the tests agree, or are a rough hint."""
DIFFERS = 3.0
"""A configured learning rate that differs by more than this factor is worth a sentence."""


@dataclass(frozen=True)
class LearningRates:
    """The result of `learning_rate`.

    Attributes:
        suggestion: learning rate, the geometric mean of the tests; None where `problem` says why.
        interval: 95 % interval of the mean over the seeds; None with one test or without a suggestion.
        minimum: learning rate at the lowest loss, the geometric mean of the tests that have one.
        steepest: learning rate at which the loss falls fastest, likewise.
        diverged: learning rate at which the loss had diverged, likewise.
        configured: `optimizer.learning_rate` of the config.
        problem: why there is no suggestion, and which end of the range to extend.
        curves: the curve of each test.
    """

    suggestion: float | None
    interval: tuple[float, float] | None
    minimum: float | None
    steepest: float | None
    diverged: float | None
    configured: float
    problem: str
    curves: Sequence[RangeCurve]

    @property
    def certainty(self) -> str:
        """How sure the suggestion is, as a sentence; "" without one."""
        if self.suggestion is None:
            return ""
        if self.interval is None:
            return "One test says nothing about chance. --repeats=3 gives an interval."
        low, high = self.interval
        text = f"95 % interval over {len(self.curves)} seeds: {low:.2g} to {high:.2g}"
        if high / low <= AGREE:
            return f"{text}; the tests agree."
        if high / low <= ROUGH:
            return f"{text}; a rough hint."
        return f"{text}; the tests disagree. Repeat more often, or with more steps."

    @property
    def comparison(self) -> str:
        """How the learning rate of the config compares, as a sentence; "" without a suggestion."""
        if self.suggestion is None:
            return ""
        if not self.configured:
            return "The config has 0."
        factor = self.configured / self.suggestion
        if 1 / DIFFERS <= factor <= DIFFERS:
            return f"The config has {self.configured:g}, which is within a factor of {DIFFERS:g}."
        times = f"{max(factor, 1 / factor):.2g} times {'larger' if factor > 1 else 'smaller'}"
        beyond = self.diverged is not None and self.configured >= self.diverged
        return f"The config has {self.configured:g}, which is {times}" + (
            ", and at which the tests diverge." if beyond else "."
        )

    @property
    def flag(self) -> str:
        """The flag that sets the suggestion; "" without one."""
        return "" if self.suggestion is None else f"--config.optimizer.learning_rate={self.suggestion:.2g}"


def learning_rate(
    config: AnyConfig,
    *,
    between: tuple[float, float] = (1e-6, 1.0),
    steps: int = 100,
    repeats: int = 3,
    task: Task | None = None,
    data: Readable | None = None,
    on_test: Callable[[int, int], None] = lambda number, repeats: None,
) -> LearningRates:
    """Returns a learning rate that a range test suggests (Smith 2017, arXiv:1506.01186, section 3.3).

    It trains short temporary runs whose learning rate grows exponentially, and suggests a tenth of the learning rate
    at the lowest smoothed loss. The tests differ in `train.seed`. In a run of several processes, each calls it, and
    gets the same result, with the curves in the primary only; on several machines, TMPDIR has to be a folder that
    they share.

    Args:
        config: as for `engine.train`.
        between: learning rate of the first and of the last step.
        steps: steps of a test.
        repeats: number of tests.
        task, data: as for `engine.train`.
        on_test: called with the number of a test, from 1, and how many there are.

    Raises:
        ConvoyError: an argument is wrong, or a test cannot run.
    """
    low, high = between
    _check(low, high, steps, repeats)
    config = resolve_config(config)
    given = {name: value for name, value in (("task", task), ("data", data)) if value is not None}
    curves = []
    with shared_folder() as folder:
        for number in range(repeats):
            on_test(number + 1, repeats)
            seed = (config.train.seed + number) % 2**32
            test = range_config(config, low, high, steps, seed)
            curves.append(run_test(test, folder / str(number), steps, given))
    found = [curve for curve in curves if curve is not None]
    result = group.run_on_primary(
        lambda: dataclasses.asdict(dataclasses.replace(combine(found, config.optimizer.learning_rate), curves=[])),
        "the suggestion",
    )
    interval = result["interval"] and tuple(result["interval"])
    return LearningRates(**{**result, "interval": interval, "curves": tuple(found)})


def combine(curves: Sequence[RangeCurve], configured: float) -> LearningRates:
    """Returns the suggestion of several tests; none if one of them has none."""
    problems = [curve.problem for curve in curves if curve.problem]
    problem = problems[0] if problems else ""
    if problem and len(curves) > 1:
        problem = f"in {len(problems)} of {len(curves)} tests, {problem}"
    suggestions = [curve.suggestion for curve in curves if curve.suggestion is not None]
    sure = not problem
    return LearningRates(
        suggestion=geometric_mean(suggestions) if sure else None,
        interval=_interval(suggestions, curves) if sure and len(curves) > 1 else None,
        minimum=_mean([curve.minimum for curve in curves]),
        steepest=_mean([curve.steepest for curve in curves]),
        diverged=_mean([curve.diverged for curve in curves]),
        configured=configured,
        problem=problem,
        curves=curves,
    )


def _interval(suggestions: Sequence[float], curves: Sequence[RangeCurve]) -> tuple[float, float]:
    """Returns the t interval of the mean of the logarithms, widened by half the distance of two steps."""
    found = t_interval([math.log(value) for value in suggestions])
    rates = curves[0].learning_rates
    half = math.log(rates[1] / rates[0]) / 2
    low, high = (found.low, found.high) if math.isfinite(found.low) else (found.estimate, found.estimate)
    return math.exp(low - half), math.exp(high + half)


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return geometric_mean(found) if found else None


def _check(low: float, high: float, steps: int, repeats: int) -> None:
    if not 0 < low < high <= MAX_RATE:
        raise ConfigError(f"--from = {low:g}, --to = {high:g}: allowed is 0 < from < to <= {MAX_RATE:g}.")
    if high / low < 2:
        raise ConfigError(f"--from = {low:g}, --to = {high:g}: the range is too narrow. Let --to be 2 times --from.")
    if not MIN_STEPS <= steps <= 100_000:
        raise ConfigError(f"--steps = {steps}: allowed are {MIN_STEPS} to 100,000.")
    if not 1 <= repeats <= 100:
        raise ConfigError(f"--repeats = {repeats}: allowed are 1 to 100.")
