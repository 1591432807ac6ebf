"""The domains of a search space: what `uniform`, `log`, `integer`, `log_integer`, `choice` and `when` return.

`str` of a domain is its canonical text, which `space_text.py` parses to an equal domain.
"""

import dataclasses
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConfigError
from engine.config.schema import Plain

if TYPE_CHECKING:
    import optuna

MAX_WHOLE = 2**53  # Optuna stores integers as floats
MAX_POINTS = 10_000


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. With `step`, only low, low + step, ..."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False
    points: int | None = None
    """Number of values in a grid."""

    def __post_init__(self):
        low, high = (_number(getattr(self, name), name, self.whole, self) for name in ("low", "high"))
        if not low < high:
            raise ConfigError(f"{self}: low must be less than high.")
        if self.log and low <= 0:
            raise ConfigError(f"{self}: a logarithmic range needs low > 0.")
        if self.points is not None:
            self._check_points()
        step = None if self.step is None else _number(self.step, "step", self.whole, self)
        if step is not None and not 0 < _exact(step) <= _exact(high) - _exact(low):
            raise ConfigError(f"{self}: step must be more than 0 and at most high - low.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "step", None if self.whole and step == 1 else step)
        object.__setattr__(self, "high", high if step is None else self._last(high, step))

    def _check_points(self) -> None:
        if type(self.points) is not int or not 2 <= self.points <= MAX_POINTS:
            raise ConfigError(f"{self}: points must be an integer from 2 to {MAX_POINTS}.")
        if self.step is not None:
            raise ConfigError(f"{self}: step and points exclude each other. Leave one of them out.")

    def _last(self, high: float, step: float) -> float:
        """Returns the largest value that steps reach, so that equal ranges are equal and Optuna needs no rounding."""
        if (high - self.low) / step > MAX_WHOLE:
            raise ConfigError(f"{self}: step is too small for this range. Leave it out.")
        last = _exact(self.low) + (_exact(high) - _exact(self.low)) // _exact(step) * _exact(step)
        if _exact(float(last)) != last:
            raise ConfigError(f"{self}: step has too many digits for its range. Write rounded numbers.")
        return int(last) if self.whole else float(last)

    @property
    def function(self) -> str:
        """Name of the function that makes such a range."""
        return {(True, True): "log_integer", (True, False): "integer", (False, True): "log"}.get(
            (self.whole, self.log), "uniform"
        )

    def __str__(self) -> str:
        step = "" if self.step is None else f", {self.step!r}"
        points = "" if self.points is None else f", points={self.points!r}"
        return f"{self.function}({self.low!r}, {self.high!r}{step}{points})"

    def suggest(self, trial: "optuna.trial.BaseTrial", name: str) -> Plain:
        """Returns the value that Optuna chooses for the setting `name`."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return self._rounded(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def _rounded(self, value: float) -> float:
        """Returns 0.3 where steps of 0.1 add up to 0.30000000000000004."""
        if self.step is None:
            return value
        return float(_exact(self.low) + round((value - self.low) / self.step) * _exact(self.step))

    def parameter(self, value: Plain) -> Any:
        """Returns Optuna's parameter for a value of this domain."""
        assert isinstance(value, int | float)
        return int(value) if self.whole else float(value)

    def contains(self, value: object) -> bool:
        """Whether a trial may have this value."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        in_range = self.low <= value <= self.high
        return in_range and (self.step is None or (_exact(value) - _exact(self.low)) % _exact(self.step) == 0)

    def values(self) -> list[Plain] | None:
        """Returns the values of a grid in ascending order, or None where `points` must tell how many."""
        if self.points is not None:
            return self._spread(self.points)
        if self.step is None and (self.log or not self.whole):
            return None
        step = _exact(1 if self.step is None else self.step)
        count = round((_exact(self.high) - _exact(self.low)) / step) + 1
        if count > MAX_POINTS:
            return None
        values = (_exact(self.low) + number * step for number in range(count))
        return [int(value) if self.whole else float(value) for value in values]

    def _spread(self, points: int) -> list[Plain]:
        """Returns evenly spread values, in the logarithm if the range is logarithmic; equal integers once."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [low + (high - low) * number / (points - 1) for number in range(1, points - 1)]
        inner = [math.exp(value) for value in inner] if self.log else inner
        if self.whole:
            return [*sorted({int(self.low), int(self.high), *(round(value) for value in inner)})]
        return [self.low, *(min(max(float(f"{value:.12g}"), self.low), self.high) for value in inner), self.high]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Plain, ...]

    def __post_init__(self):
        object.__setattr__(self, "options", tuple(_option(option, self) for option in self.options))
        if not self.options:
            raise ConfigError("choice(): needs at least one value.")
        keys = [self.parameter(option) for option in self.options]
        for number, option in enumerate(self.options):
            if keys.index(keys[number]) != number:
                earlier = self.options[keys.index(keys[number])]
                raise ConfigError(f"{self}: {earlier!r} and {option!r} are the same value. Leave one of them out.")

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.options))})"

    def suggest(self, trial: "optuna.trial.BaseTrial", name: str) -> Plain:
        """Returns the value that Optuna chooses for the setting `name`."""
        keys = [self.parameter(option) for option in self.options]
        return self.options[keys.index(trial.suggest_categorical(name, keys))]

    def parameter(self, value: Plain) -> Any:
        """Returns Optuna's parameter for a value: the text of a tuple, which is no category of Optuna."""
        return repr(value) if isinstance(value, tuple) else value

    def contains(self, value: object) -> bool:
        """Whether a trial may have this value."""
        return value in self.options

    def values(self) -> list[Plain]:
        """Returns the values of a grid."""
        return list(self.options)


@dataclasses.dataclass(frozen=True)
class When:
    """A domain that is used only in trials in which another setting has one of some values."""

    setting: str
    values: tuple[Plain, ...]
    domain: Range | Choice

    def __str__(self) -> str:
        values = repr(self.values[0]) if len(self.values) == 1 else repr(list(self.values))
        return f"when({self.setting!r}, {values}, {self.domain})"


type Domain = Range | Choice | When


def uniform(low: float, high: float, step: float | None = None, *, points: int | None = None) -> Range:
    """Numbers from `low` to `high`; `points` is their number in a grid."""
    return Range(low, high, step, points=points)


def log(low: float, high: float, *, points: int | None = None) -> Range:
    """Numbers from `low` to `high`, spread evenly in the logarithm; `points` is their number in a grid."""
    return Range(low, high, log=True, points=points)


def integer(low: int, high: int, step: int | None = None, *, points: int | None = None) -> Range:
    """Integers from `low` to `high`, both included; `points` is their number in a grid, without it all of them."""
    return Range(low, high, step, whole=True, points=points)


def log_integer(low: int, high: int, *, points: int | None = None) -> Range:
    """Integers from `low` to `high`, spread evenly in the logarithm; `points` is their number in a grid."""
    return Range(low, high, log=True, whole=True, points=points)


def choice(*options: Plain) -> Choice:
    """One of the values: texts, numbers, True, False, None, or tuples of them."""
    return Choice(options)


def when(setting: str, values: Plain | Sequence[Plain], domain: Range | Choice) -> When:
    """A domain that is used only in trials in which `setting` of the same space has a value, or one of a list of them.

    In other trials the setting keeps the value of the config.
    """
    if not isinstance(setting, str):
        raise ConfigError(f"when({setting!r}, ...): the first argument is the name of a setting, as text.")
    if not isinstance(domain, Range | Choice):
        advice = "the third argument is a domain such as log(1e-5, 1e-3), without a further when"
        raise ConfigError(f"when({setting!r}, ...): {advice}.")
    found = values if isinstance(values, list) else [values]
    if not found:
        raise ConfigError(f"when({setting!r}, [], ...): the list of values is empty.")
    unique = {repr(option): option for option in (_option(value, f"when({setting!r}, ...)") for value in found)}
    return When(setting, tuple(unique[text] for text in sorted(unique)), domain)


FUNCTIONS = {function.__name__: function for function in (uniform, log, integer, log_integer, choice, when)}
FORMS = (
    "uniform(low, high[, step])", "log(low, high)", "integer(low, high[, step])", "log_integer(low, high)",
    "choice(a, b, ...)", "when(setting, values, domain)",
)  # fmt: skip


def _number(value: object, name: str, whole: bool, shown: object) -> float:
    if type(value) not in ((int,) if whole else (int, float)):
        raise ConfigError(f"{shown}: {name} must be {'an integer' if whole else 'a number'}, found {value!r}.")
    assert isinstance(value, int | float)
    if not math.isfinite(value) or (whole and abs(value) > MAX_WHOLE):
        raise ConfigError(f"{shown}: {name} is too large.")
    return value if whole else float(value)


def _exact(value: float) -> Decimal:
    """Returns the decimal number that Python prints."""
    return Decimal(repr(value))


def _option(value: object, shown: object) -> Plain:
    if isinstance(value, list | tuple):
        return tuple(_option(item, shown) for item in value)
    if value is None:
        return None
    if not isinstance(value, bool | int | float | str) or type(value) not in (bool, int, float, str):
        raise ConfigError(f"{shown}: found {value!r}. Allowed: texts, numbers, True, False, None, and tuples of them.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{shown}: found {value}. Values are finite numbers.")
    return value
