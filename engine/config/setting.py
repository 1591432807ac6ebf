"""Declaration of a schema field: its default, help text and allowed values, in one call.

The declaration is stored as metadata of the dataclass field. Validation, `convoy config --help` and error messages
read it from there.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Never

from engine.base.duration import CLOCK_UNITS, DATA_UNITS, UNITS, Duration
from engine.base.errors import FieldError, did_you_mean

type Check = Callable[[object, str], None]
"""Called with a value of the right type and its path; raises FieldError if the value is not allowed."""

MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 1e30  # the largest int32, in which devices count; a number well within float32

_KEY = "setting"


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that a field allows: in words for the help text, and as a check, which None always passes."""

    text: str
    check: Check


@dataclasses.dataclass(frozen=True)
class Setting:
    """Help text and allowed values of a field."""

    help: str
    rule: Rule | None = None
    auto: bool = False
    """Whether the text "auto" is allowed in a config; the engine replaces it by a number before it builds a program."""

    @property
    def text(self) -> str:
        """The help text, followed by the allowed values."""
        return f"{self.help} {self.rule.text}".rstrip() if self.rule else self.help


def setting[T](default: T, help: str, rule: Rule | None = None, *, auto: bool = False) -> T:
    """Declares a field of a section; `convoy config --help` prints `help` and the text of the rule.

    With `auto`, a config may also hold the text "auto", which a run replaces by a value of the field's type.
    """
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, rule, auto)})


def table(help: str) -> Mapping[str, Never]:
    """Declares a table or open dict, whose keys users choose; it is empty by default."""
    return dataclasses.field(default_factory=dict, metadata={_KEY: Setting(help)})


def setting_of(field: dataclasses.Field) -> Setting:
    """Returns the declaration of a field, made by `setting` or `table`."""
    return field.metadata.get(_KEY, Setting(""))


def at_least(low: float, below: float | None = None) -> Rule:
    """Allows numbers >= `low`, and < `below` if given; at most the largest number that a device can hold."""
    limit = f"at least {low}" if below is None else f"at least {low} and less than {below}"
    return _number(limit, lambda value: value >= low and (below is None or value < below), below)


def above(low: float, below: float | None = None) -> Rule:
    """Allows numbers > `low`, and < `below` if given; at most the largest number that a device can hold."""
    limit = f"more than {low}" if below is None else f"more than {low} and less than {below}"
    return _number(limit, lambda value: value > low and (below is None or value < below), below)


def _number(limit: str, allows: Callable[[float], bool], below: float | None) -> Rule:
    def check(value: object, path: str) -> None:
        if not (isinstance(value, int | float) and allows(value)):
            raise FieldError(path, f"found {value}, allowed is {limit}", "")
        most = MAX_INTEGER if isinstance(value, int) else MAX_NUMBER
        if below is None and value > most:
            raise FieldError(path, f"found {value}, allowed is {limit} and at most {most}", "")

    return Rule(f"Allowed: {limit}.", check)


def one_of(*choices: str) -> Rule:
    """Allows one of several texts."""
    text = f"Allowed: {', '.join(choices)}."

    def check(value: object, path: str) -> None:
        if value not in choices:
            raise FieldError(path, f"found {value!r}", f"{text}{did_you_mean(str(value), choices)}")

    return Rule(text, check)


def in_units(*units: str, zero: bool = False) -> Rule:
    """Allows durations in one of several units; `zero` also allows a duration of 0."""
    listed = ", ".join(units)

    def check(value: object, path: str) -> None:
        duration = Duration.parse(str(value), path, units)
        if duration.unit not in units:
            raise FieldError(path, f"found {value!r}", f"Units here: {listed}.")
        if duration.value == 0 and not zero:
            shortest = f"1 {units[0].removesuffix('s')}"
            raise FieldError(path, f"found {value!r}, which has no length", f"Use '{shortest}' for the shortest.")

    return Rule(f"Units: {listed}.", check)


def matching(pattern: str, advice: str, problem: str = "") -> Rule:
    """Allows texts that match a regular expression completely."""

    def check(value: object, path: str) -> None:
        if not re.fullmatch(pattern, str(value)):
            raise FieldError(path, f"found {value!r}{problem}", advice)

    return Rule("", check)


def regular_expression() -> Rule:
    """Allows valid regular expressions."""

    def check(value: object, path: str) -> None:
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about nested sets
                re.compile(str(value))
        except (re.error, OverflowError, RecursionError) as error:
            raise FieldError(path, f"found {value!r}, not a regular expression", f"Python reports: {error}.") from None

    return Rule("", check)


MAX_WORKERS, MAX_DEVICES, MAX_AXIS = 1024, 4096, 2**20  # so that a typing error does not overload the machine
MAX_GIB = 2**20  # GiB in a file system
AUTO = "auto"  # value of train.global_batch_size, train.accumulate and train.remat until the run has chosen one


def _axis_size(value: object, path: str) -> None:
    if value != -1 and not (isinstance(value, int) and 1 <= value <= MAX_AXIS):
        advice = f"Allowed: a number of devices, at most {MAX_AXIS}, or -1 for all remaining devices."
        raise FieldError(path, f"found {value}", advice)


def _cpu_devices(value: object, path: str) -> None:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MAX_DEVICES):
        raise FieldError(path, f"found {value!r}", f"Allowed: 1 to {MAX_DEVICES} devices, auto, or None.")


def _or_auto(numbers: Rule, what: str, auto: str) -> Rule:
    """Allows numbers, and auto; `what` names the numbers in errors, and `auto` says what auto does."""

    def check(value: object, path: str) -> None:
        if isinstance(value, str) and value != AUTO:
            raise FieldError(path, f"found {value!r}", f"Allowed: {what}, or auto.")
        if value != AUTO:
            numbers.check(value, path)

    return Rule(f"{numbers.text.removesuffix('.')}, and auto, which {auto}.", check)


BY_DATA, BY_CLOCK, ANY_UNIT = in_units(*DATA_UNITS), in_units(*CLOCK_UNITS), in_units(*UNITS)
AXIS_SIZE = Rule("", _axis_size)
CPU_DEVICES = Rule("", _cpu_devices)
WORKERS = _or_auto(at_least(0, below=MAX_WORKERS + 1), "a number of processes", "finds the number")
SIZE = _or_auto(at_least(1), "a number", "takes what fits into the memory of the devices")
PREFETCH = _or_auto(at_least(0), "a number of dispatches", "fills a share of the free memory")
FOLDER = matching(r".+", "Name a folder, or None.")
NAME = matching(r"(\w[\w.-]{0,99})?", "It is the name of a folder: use up to 100 letters, digits, '_', '-' and '.'.")
DOTTED_PATH = matching(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)+)?", "Write package.module.Name.", ", not a dotted path")
SCHEDULES = (
    *("constant", "linear", "cosine", "warmup_stable_decay"),
    *("inverse_sqrt", "piecewise", "one_cycle", "warm_restarts"),
)


def _schedule(value: object, path: str) -> None:
    if value not in SCHEDULES and "." not in str(value):
        one_of(*SCHEDULES, "or the dotted path of a function").check(value, path)
    DOTTED_PATH.check(value if value not in SCHEDULES else "", path)


SCHEDULE = Rule(f"Allowed: {', '.join(SCHEDULES)}, or the dotted path of a function.", _schedule)
MODE = one_of("auto", "max", "min")
METRIC = matching(r"[^/\s]+/\S+", "Write evaluation/metric or hook/metric, such as 'heldout/accuracy'.")
SCORE = matching(r"\S+", "Write the name of a metric without that of the evaluation, such as 'loss' or 'ap/car'.")
REMAT = matching(
    r"none|full|dots|auto|(save|offload):\w+(,\w+)*",
    "Allowed: auto, none, full, dots, save:NAME,NAME or offload:NAME,NAME with names of engine.layers.checkpoint.",
)

# Roles of parameters, which `training/roles.py` finds.
EMBEDDING, MATRIX, HEAD, NORM, BIAS, CONVOLUTION = "embedding", "matrix", "head", "norm", "bias", "convolution"
ROLES = (EMBEDDING, MATRIX, HEAD, NORM, BIAS, CONVOLUTION)
DECAYED = (EMBEDDING, MATRIX, HEAD, CONVOLUTION)
"""Roles of `optimizer.decay = "matrices"`."""
KINDS = ("matrices", "all", "none")
"""Values of `optimizer.decay` that are no list."""


def listed_roles(text: str) -> tuple[str, ...]:
    """Returns the roles of a text such as "matrix, head"; "matrices" stands for `DECAYED`."""
    return DECAYED if text == "matrices" else tuple(re.split(r"\s*,\s*", text.strip()))


def _check(value: object, path: str, others: tuple[str, ...]) -> None:
    if value in others:
        return
    for role in listed_roles(str(value)):
        if role not in ROLES:
            allowed = f"{', '.join(filter(None, others))}{' or ' * any(others)}roles: {', '.join(ROLES)}"
            raise FieldError(path, f"found {value!r}", f"Allowed: {allowed}.{did_you_mean(role, (*ROLES, *others))}")


DECAY = Rule(f"Allowed: {', '.join(KINDS)}, or a list of roles.", lambda value, path: _check(value, path, KINDS))
SOME_ROLES = Rule(f"Roles: {', '.join(ROLES)}.", lambda value, path: _check(value, path, ("",)))
