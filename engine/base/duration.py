"""Durations of training ("30 epochs", "500 steps", "10 minutes") and the periods that repeat them.

A step is one global batch; an epoch is `dataset_size` examples, and a batch may span two epochs. All arithmetic uses
integers and fractions, so that rounding never moves a step. `checkpoint/policy.py` handles durations in seconds,
minutes and hours.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from engine.base.errors import ConfigError, FieldError, did_you_mean

DATA_UNITS = ("steps", "examples", "epochs")
CLOCK_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}
UNITS = (*DATA_UNITS, *CLOCK_UNITS)
MAX_VALUE, MAX_DECIMALS = 10**15, 13  # so that a value prints exactly, and a typing error does not occupy the CPU
UNKNOWN_LENGTH = 2**62  # dataset size of a stream that does not know its length: an epoch without an end
MAX_STEPS = 2**31 - 1  # devices count steps in int32
MAX_SECONDS = 10**9  # 31 years; timeouts of Python's locks end at 292 years

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
            FieldError: the text is not a number and one of `UNITS`, the number is out of range, or it is a fraction of
                a step or an example. The error lists `units`, those that are allowed at `where`.
        """
        example = "Write a number and a unit, such as '3 epochs' or '500 steps'"
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise FieldError(where, f"found {_shown(text)}, not a duration", f"{example}. Units: {', '.join(units)}.")
        unit = match["unit"].lower()
        unit = unit if unit.endswith("s") else f"{unit}s"
        if unit not in UNITS:
            near = did_you_mean(unit, units)
            problem = f"found {_shown(text)}, unknown unit {_shown(match['unit'])}"
            raise FieldError(where, problem, f"Units: {', '.join(units)}.{near}")
        value = _number(match["number"], text, where, example)
        if unit in CLOCK_UNITS and value * CLOCK_UNITS[unit] > MAX_SECONDS:
            most = f"{MAX_SECONDS // CLOCK_UNITS[unit]} {unit}"
            raise FieldError(where, f"found {_shown(text)}, which is too long", f"Allowed: at most {most}.")
        if value.denominator != 1 and unit in ("steps", "examples"):
            problem = f"found {_shown(text)}, not a whole number of {unit}"
            raise FieldError(where, problem, f"Write a whole number of {unit}.")
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
        if self.unit == "epochs" and dataset_size >= UNKNOWN_LENGTH:
            raise ConfigError(
                f"found '{self}', but the training data is a stream of unknown length, which has no epochs. Write "
                "train.total, evaluations.<name>.every and other durations in steps or examples, or give the stream a "
                "method counts()."
            )
        return self.value * {"steps": batch_size, "examples": 1, "epochs": dataset_size}[self.unit]

    def steps(self, batch_size: int, dataset_size: int) -> int:
        """Returns the number of steps, rounded up: "30 epochs" of N examples is ceil(30 N / batch_size)."""
        return math.ceil(Fraction(self.examples(batch_size, dataset_size)) / batch_size)


def _number(number: str, text: str, where: str, example: str) -> Fraction:
    """Returns the value of the number in the duration `text`. Raises FieldError if it is not in the allowed range."""
    try:
        value = Decimal(number) if "__" not in number else None
    except InvalidOperation:
        value = None
    if value is None or not value.is_finite():
        raise FieldError(where, f"found {_shown(text)}, {_shown(number)} is not a number", f"{example}.")
    if value < 0:
        raise FieldError(where, f"found {_shown(text)}, which is negative", f"{example}.")
    if value >= MAX_VALUE:  # compared as a Decimal: a Fraction of 1e999999999 would fill the memory
        advice = f"Allowed: less than 1e{len(str(MAX_VALUE)) - 1}."
        raise FieldError(where, f"found {_shown(text)}, which is too large", advice)
    if value and (value.adjusted() < -MAX_DECIMALS or value != round(value, MAX_DECIMALS)):
        advice = f"Allowed: at most {MAX_DECIMALS} digits after the decimal point."
        raise FieldError(where, f"found {_shown(text)}, which has too many digits", advice)
    return Fraction(value)


def _shown(text: str) -> str:
    """Returns the text in quotes, shortened if it is very long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


class Period:
    """The steps of a run at which something periodic is due: `Period(Duration(1, "epochs"), 64, 1437, 674).due(23)`."""

    def __init__(
        self,
        duration: Duration | None,
        batch_size: int,
        dataset_size: int,
        total_steps: int,
        at_start: bool = False,
        at_end: bool = True,
    ):
        """Creates a period; with None only the last step is due.

        Args:
            duration: length of the period.
            batch_size, dataset_size, total_steps: sizes of the run.
            at_start: whether step 0 is due as well.
            at_end: whether the last step is due even if it does not end a period.

        Raises:
            ConfigError: the unit is one of time, or the duration is 0.
        """
        self.batch_size, self.total_steps, self.at_start, self.at_end = batch_size, total_steps, at_start, at_end
        examples = None if duration is None else Fraction(duration.examples(batch_size, dataset_size))
        if examples == 0:
            raise ConfigError(
                f"A period of '{duration}' has no length. Use '1 step' for every step, or None for the last step only."
            )
        # Two integers: `due` is called at every step, and a Fraction takes ten times as long.
        self._every = None if examples is None else (examples.numerator, examples.denominator * batch_size)

    def due(self, step: int) -> bool:
        """Whether `step` is the first to reach a multiple of the period, or the first or last step if these are due."""
        if step <= 0:
            return step == 0 and self.at_start
        if step == self.total_steps and self.at_end:
            return True
        return self._reached(step) > self._reached(step - 1)

    def next_after(self, step: int) -> int:
        """Returns the next step after `step` that may be due; at most `total_steps`, which `due` may deny."""
        if step < 0 and self.at_start:
            return 0
        if self._every is None:
            return self.total_steps
        examples, per_step = self._every
        return min(-(-(self._reached(max(step, 0)) + 1) * examples // per_step), self.total_steps)

    def start(self, step: int) -> int:
        """Returns the last step before `step` that is due as a multiple of the period; 0 if there is none."""
        if self._every is None:
            return 0
        examples, per_step = self._every
        return -(-self._reached(step - 1) * examples // per_step)

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

    def period(self, every: Duration | None, at_start: bool = False, at_end: bool = True) -> Period:
        """Returns the steps of the run at which `every` is due, with the arguments of `Period`."""
        return Period(every, self.batch_size, self.dataset_size, self.total_steps, at_start, at_end)
