"""Durations of training ("30 epochs", "500 steps", "10 minutes") and the periods that repeat them.

A step is one global batch; an epoch is `dataset_size` examples, and a batch may span two epochs. All arithmetic uses
integers and fractions, so that rounding never moves a step. `checkpoint/policy.py` handles durations in seconds,
minutes and hours.
"""

import math
import re
from collections.abc import Collection
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
    def parse(cls, text: str, where: str = "duration", units: Collection[str] = UNITS) -> "Duration":
        """Parses "30 epochs", "1 epoch", "0.5 epochs", "1_000 steps" or "10 minutes".

        Raises:
            FieldError: the text is not a number and one of `UNITS`, or is a fraction of a step or an example. The error
                lists `units`, those that are allowed at `where`.
        """
        example = "Write a number and a unit, such as '3 epochs' or '500 steps'"
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise FieldError(where, f"found {text!r}, not a duration", f"{example}. Units: {', '.join(units)}.")
        unit = match["unit"].lower()
        unit = unit if unit.endswith("s") else f"{unit}s"
        if unit not in UNITS:
            near = did_you_mean(unit, units)
            raise FieldError(
                where, f"found {text!r}, unknown unit {match['unit']!r}", f"Units: {', '.join(units)}.{near}"
            )
        try:
            value = Fraction(match["number"].lower())
        except ValueError:
            raise FieldError(where, f"found {text!r}, {match['number']!r} is not a number", f"{example}.") from None
        if value < 0:
            raise FieldError(where, f"found {text!r}, which is negative", f"{example}.")
        if value.denominator != 1 and unit in ("steps", "examples"):
            raise FieldError(where, f"found {text!r}, not a whole number of {unit}", f"Write a whole number of {unit}.")
        return cls(int(value) if value.denominator == 1 else value, unit)

    def __str__(self) -> str:
        number = f"{Decimal(self.value.numerator) / self.value.denominator:f}"
        return f"{number} {self.unit[:-1] if self.value == 1 else self.unit}"

    @property
    def is_clock(self) -> bool:
        """Whether the unit is one of time, and not one of data."""
        return self.unit in CLOCK_UNITS

    @property
    def seconds(self) -> float:
        """Length in seconds. Raises ConfigError for steps, examples and epochs."""
        if not self.is_clock:
            raise ConfigError(f"'{self}' has no length in seconds. Units of time: {', '.join(CLOCK_UNITS)}.")
        return float(self.value * CLOCK_UNITS[self.unit])

    def examples(self, batch_size: int, dataset_size: int) -> int | Fraction:
        """Returns the exact number of examples: "0.1 epochs" of 1,797 examples is Fraction(1797, 10).

        Raises:
            ConfigError: the unit is one of time, or the dataset is empty.
        """
        if self.is_clock:
            raise ConfigError(f"'{self}' is not a number of examples. Units of the data: {', '.join(DATA_UNITS)}.")
        if self.unit == "epochs" and dataset_size < 1:
            raise ConfigError(f"'{self}' of a dataset of {dataset_size} examples has no length. Use steps or examples.")
        return self.value * {"steps": batch_size, "examples": 1, "epochs": dataset_size}[self.unit]

    def steps(self, batch_size: int, dataset_size: int) -> int:
        """Returns the number of steps, rounded up: "30 epochs" of N examples is ceil(30 N / batch_size)."""
        return math.ceil(Fraction(self.examples(batch_size, dataset_size)) / batch_size)


class Period:
    """The steps of a run at which something periodic is due: `Period(Duration(1, "epochs"), 64, 1437, 674).due(23)`."""

    def __init__(self, duration: Duration | None, batch_size: int, dataset_size: int, total_steps: int):
        """Creates a period; with None only the last step is due.

        Raises:
            ConfigError: the unit is one of time, or the duration is 0.
        """
        self.batch_size, self.total_steps = batch_size, total_steps
        examples = None if duration is None else Fraction(duration.examples(batch_size, dataset_size))
        if examples == 0:
            raise ConfigError(
                f"A period of '{duration}' has no length. Use '1 step' for every step, or None for the last step only."
            )
        # Two integers: `due` is called at every step, and a Fraction takes ten times as long.
        self._every = None if examples is None else (examples.numerator, examples.denominator * batch_size)

    def due(self, step: int) -> bool:
        """Whether `step` is the first to reach a multiple of the period, or the last step. Never at step 0."""
        if step <= 0 or step == self.total_steps:
            return step > 0
        return self._reached(step) > self._reached(step - 1)

    def next_after(self, step: int) -> int:
        """Returns the next due step after `step`; at least 1, at most `total_steps`."""
        if self._every is None:
            return self.total_steps
        examples, per_step = self._every
        return min(-(-(self._reached(max(step, 0)) + 1) * examples // per_step), self.total_steps)

    def _reached(self, step: int) -> int:
        """Returns how many whole periods the examples of `step` steps fill."""
        if self._every is None:
            return 0
        examples, per_step = self._every
        return step * per_step // examples


@dataclass(frozen=True)
class RunSize:
    """The sizes of a run by which durations are converted to steps."""

    batch_size: int  # examples per step
    dataset_size: int  # examples per epoch
    total_steps: int

    def period(self, every: Duration | None) -> Period:
        """Returns the steps of the run at which `every` is due; None: the last step only."""
        return Period(every, self.batch_size, self.dataset_size, self.total_steps)
