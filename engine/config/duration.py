"""Durations of training ("30 epochs", "500 steps", "10 minutes") and the periods that repeat them.

A step is one global batch; an epoch is `dataset_size` examples, and batches may cross epochs. All arithmetic is in
integers and fractions, so that no rounding moves a step. Durations of a clock are read by `checkpoint/policy.py`.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from engine.config.errors import ConfigError, FieldError, did_you_mean

DATA_UNITS = ("steps", "examples", "epochs")
CLOCK_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}
UNITS = (*DATA_UNITS, *CLOCK_UNITS)

_PATTERN = re.compile(r"\s*(?P<number>[-+]?[\d_]*\.?\d+(?:e[-+]?\d+)?)\s*(?P<unit>[a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """An amount of training in one unit; `value` is an int, or a Fraction where it was written with a decimal part."""

    value: int | Fraction
    unit: str

    @classmethod
    def parse(cls, text: str, where: str = "duration") -> "Duration":
        """Reads "30 epochs", "1 epoch", "0.5 epochs", "1_000 steps", "10 minutes".

        Raises:
            FieldError: not a number and one of `UNITS`, or a fraction of a step or of an example.
        """
        example = "Write a number and a unit, such as '3 epochs' or '500 steps'"
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise FieldError(where, f"found {text!r}, not a duration", f"{example}. Units: {', '.join(UNITS)}.")
        unit = match["unit"].lower()
        unit = unit if unit.endswith("s") else f"{unit}s"
        if unit not in UNITS:
            near = did_you_mean(unit, UNITS)
            raise FieldError(
                where, f"found {text!r}, unknown unit {match['unit']!r}", f"Units: {', '.join(UNITS)}.{near}"
            )
        try:
            value = Fraction(match["number"].lower())
        except ValueError:
            raise FieldError(where, f"found {text!r}, {match['number']!r} is no number", f"{example}.") from None
        if value < 0:
            raise FieldError(where, f"found {text!r}, less than nothing", f"{example}.")
        if value.denominator != 1 and unit in ("steps", "examples"):
            raise FieldError(where, f"found {text!r}, a fraction of what is counted whole", f"Write whole {unit}.")
        return cls(int(value) if value.denominator == 1 else value, unit)

    def __str__(self) -> str:
        number = f"{Decimal(self.value.numerator) / self.value.denominator:f}"
        return f"{number} {self.unit[:-1] if self.value == 1 else self.unit}"

    @property
    def is_clock(self) -> bool:
        """Whether it is measured by a clock and not by the data."""
        return self.unit in CLOCK_UNITS

    @property
    def seconds(self) -> float:
        """Its length by the clock. Raises ConfigError for steps, examples and epochs."""
        if not self.is_clock:
            raise ConfigError(f"'{self}' has no length in seconds. Units of the clock: {', '.join(CLOCK_UNITS)}.")
        return float(self.value * CLOCK_UNITS[self.unit])

    def examples(self, batch_size: int, dataset_size: int) -> int | Fraction:
        """Number of examples, exactly: "0.1 epochs" of 1,797 examples is Fraction(1797, 10).

        Raises:
            ConfigError: a duration of the clock.
        """
        if self.is_clock:
            raise ConfigError(f"'{self}' is not a number of examples. Units of the data: {', '.join(DATA_UNITS)}.")
        if self.unit == "epochs" and dataset_size < 1:
            raise ConfigError(f"'{self}' of a dataset of {dataset_size} examples has no length. Use steps or examples.")
        return self.value * {"steps": batch_size, "examples": 1, "epochs": dataset_size}[self.unit]

    def steps(self, batch_size: int, dataset_size: int) -> int:
        """Number of steps that consume at least this much: "30 epochs" of N examples is ceil(30 N / batch_size)."""
        return math.ceil(Fraction(self.examples(batch_size, dataset_size)) / batch_size)


class Period:
    """Which steps of a run are due: `Period(Duration.parse("1 epoch", ...), 64, 1437, 674).due(23)`."""

    def __init__(self, duration: Duration | None, batch_size: int, dataset_size: int, total_steps: int):
        """Makes a period; None is due at the last step only.

        Raises:
            ConfigError: a duration of the clock, or one without length.
        """
        self.batch_size, self.total_steps = batch_size, total_steps
        examples = None if duration is None else Fraction(duration.examples(batch_size, dataset_size))
        if examples == 0:
            raise ConfigError(
                f"A period of '{duration}' never ends. Use '1 step' for every step, None for the last only."
            )
        # Asked for at every step: two integers, since a Fraction would take ten times as long.
        self._every = None if examples is None else (examples.numerator, examples.denominator * batch_size)

    def due(self, step: int) -> bool:
        """Whether `step` is the first to reach a multiple of the period, or the last step. Never at step 0."""
        if step <= 0 or step == self.total_steps:
            return step > 0
        return self._reached(step) > self._reached(step - 1)

    def next_after(self, step: int) -> int:
        """The next due step after `step`, at least 1 and at most `total_steps`."""
        if self._every is None:
            return self.total_steps
        examples, per_step = self._every
        return min(-(-(self._reached(max(step, 0)) + 1) * examples // per_step), self.total_steps)

    def _reached(self, step: int) -> int:
        """How many whole periods the examples of `step` steps fill."""
        if self._every is None:
            return 0
        examples, per_step = self._every
        return step * per_step // examples


@dataclass(frozen=True)
class RunSize:
    """The sizes of a run that turn durations into steps."""

    batch_size: int  # examples of a step
    dataset_size: int  # examples of an epoch
    total_steps: int

    def period(self, every: Duration | None) -> Period:
        """Returns the steps of the run at which `every` is due; None is due at the last step only."""
        return Period(every, self.batch_size, self.dataset_size, self.total_steps)
