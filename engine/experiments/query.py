"""Conditions and orders for lists of runs: `--where="optimizer.learning_rate > 1e-3" --sort=-heldout/accuracy`."""

import operator
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from engine.base.errors import ConfigError
from engine.experiments.record import FIELDS, RunRecord, plain

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "~": lambda value, part: value is not None and part in str(value),
}
SHOWN = 20  # names that an error lists
_CONDITION = re.compile(r"\s*(\S+?)\s*(<=|>=|!=|==|<|>|=|~)\s*(.*?)\s*")


def select(runs: Sequence[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """Returns the runs that meet every condition, `NAME OPERATOR VALUE` with < <= > >= = != or ~ (contains).

    NAME is a metric, a setting, or one of FIELDS. A run without it, or with a value of another kind, does not meet the
    condition; it meets `!=`.

    Raises:
        ConfigError: a condition is not of this form, or no run has its name.
    """
    kept = list(runs)
    for text in conditions:
        match = _CONDITION.fullmatch(text)
        if not match or re.match(r"[<>=]|!=", match[3]):  # `>> 1` is no value "> 1"
            raise ConfigError(
                f"--where={text!r}: not a condition. Write NAME OPERATOR VALUE with one of "
                f"{' '.join(_OPERATORS)}: --where='optimizer.learning_rate > 1e-3'."
            )
        name, symbol, wanted = match[1], match[2], plain(match[3])
        _check_name("--where", name, runs)
        wanted = match[3] if symbol == "~" and not isinstance(wanted, str) else wanted  # "1e3" as it is written
        kept = [run for run in kept if _meets(run.value(name), symbol, wanted)]
    return kept


def _meets(value: Any, symbol: str, wanted: Any) -> bool:
    try:
        return _OPERATORS[symbol](value, wanted)
    except TypeError:  # a number and a text have no order
        return False


def order(runs: Sequence[RunRecord], name: str) -> list[RunRecord]:
    """Returns the runs sorted by a metric, a setting or a field; `-NAME` puts the largest first.

    Numbers come before texts, and runs without a value come last.

    Raises:
        ConfigError: no run has a value of this name.
    """
    reverse, name = name.startswith("-"), name.removeprefix("-")
    _check_name("--sort", name, runs)
    having = [run for run in runs if run.value(name) is not None]
    having.sort(key=lambda run: _key(run.value(name)), reverse=reverse)
    return having + [run for run in runs if run.value(name) is None]


def _key(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


def _check_name(flag: str, name: str, runs: Sequence[RunRecord]) -> None:
    """Raises ConfigError if no run has a value of this name."""
    known = dict.fromkeys([*FIELDS, *(key for run in runs for part in (run.metrics, run.config) for key in part)])
    if runs and name not in known:
        metrics = dict.fromkeys(key for run in runs for key in run.metrics)
        near, found = get_close_matches(name, known, n=3, cutoff=0.5), ", ".join([*FIELDS, *metrics][:SHOWN])
        advice = f"Near names: {', '.join(near)}." if near else f"Write a setting or one of {found}."
        raise ConfigError(f"{flag}: no run has {name!r}. {advice}")
