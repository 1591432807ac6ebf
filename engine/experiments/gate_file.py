"""Reads the rules of a gate from a TOML file, one table `[rules.NAME]` for each.

Every mistake is a ConfigError with the line, the rule, what was found, and what is allowed: a rule that is not
understood must never count as passed.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.base.errors import ConfigError, did_you_mean
from engine.base.files import read_text
from engine.base.json_text import reason

SHOWN_WORSE, NOT_SHOWN_FINE, MEASURED_WORSE = "shown_worse", "not_shown_fine", "measured_worse"
FAIL_IF = (SHOWN_WORSE, NOT_SHOWN_FINE, MEASURED_WORSE)
LIMITS = ("max_worse", "max_worse_percent", "at_most", "at_least")
_OF_METRIC = ("metric", "slices", "except_slices", "min_examples", "too_few")
_OF_FILE = ("file", "number")
KEYS = (*_OF_METRIC, *_OF_FILE, *LIMITS, "better", "fail_if")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule; it has either `metric` or `file`, and one limit.

    Attributes:
        name: its name in the file.
        where: the file, the line and the name, for errors.
        metric: pattern of the numbers, "EVALUATION/NUMBER"; `*` stands for any text.
        slices: patterns of slices; empty: all examples.
        except_slices: patterns of slices that are left out.
        min_examples: with fewer examples, a number is not judged; None: the rule sets no number.
        too_few: "fail" or "skip": what a number that cannot be judged does to the rule.
        file: a JSON file in the run directory.
        number: keys and positions that lead to the number in this file.
        limit: one of LIMITS.
        value: the value of the limit.
        higher_is_better: the direction that the file states; None if it states none.
        fail_if: one of FAIL_IF.
    """

    name: str
    where: str
    metric: str = ""
    slices: tuple[str, ...] = ()
    except_slices: tuple[str, ...] = ()
    min_examples: int | None = None
    too_few: str = "fail"
    file: str = ""
    number: tuple[str, ...] = ()
    limit: str
    value: float
    higher_is_better: bool | None = None
    fail_if: str

    @property
    def compares(self) -> bool:
        """Whether the rule compares two runs."""
        return self.limit in ("max_worse", "max_worse_percent")

    @property
    def needs_interval(self) -> bool:
        """Whether the rule judges the interval of a number, and not the number alone."""
        return self.fail_if != MEASURED_WORSE

    @property
    def label(self) -> str:
        """What is judged: the pattern of the metric, or the number in the file."""
        return self.metric or f"{self.file}: {'.'.join(self.number)}"


def read_rules(path: Path) -> list[Rule]:
    """Returns the rules of a file, in their order.

    Raises:
        ConfigError: the file cannot be read, has no rules, or one of them is wrong.
    """
    try:
        text = read_text(path)
        content = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = reason(error) if isinstance(error, OSError | ValueError) else "it is nested too deeply"
        raise ConfigError(f"{path}: cannot be read as a gate ({why}). Write TOML with tables [rules.NAME].") from error
    for key in content:
        if key != "rules":
            near = did_you_mean(key, ["rules"])
            near = near or (f" Did you mean rules.{key}?" if isinstance(content[key], dict) else "")
            raise ConfigError(f"{path}: unknown table or key {key!r}.{near} Write tables [rules.NAME].")
    rules = content.get("rules")
    if not isinstance(rules, dict) or not rules:
        raise ConfigError(f"{path}: no rules. A gate without rules would pass everything: write a table [rules.NAME].")
    lines = _lines(text)
    return [_rule(name, table, path, lines) for name, table in rules.items()]


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Returns (rule, key) -> its line; the key "" is that of the table. Unusual TOML has no lines here."""
    found, rule = {}, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if table := re.match(r"""\s*\[\s*rules\s*\.\s*(?:"([^"]*)"|'([^']*)'|([\w-]+))\s*\]""", line):
            rule = next(filter(None, table.groups()), "")
            found[rule, ""] = number
        elif line.lstrip().startswith("["):
            rule = ""
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            found.setdefault((rule, key[1]), number)
    return found


def _rule(name: str, table: Any, path: Path, lines: Mapping[tuple[str, str], int]) -> Rule:
    def error(key: str, problem: str) -> ConfigError:
        line = lines.get((name, key)) or lines.get((name, "")) or lines.get(("", name))
        place = f"{path}:{line}" if line else str(path)
        return ConfigError(f"{place}: rules.{name}{f'.{key}' if key else ''}: {problem}")

    if not isinstance(table, dict):
        raise error("", f"found {table!r}, allowed is a table [rules.{name}].")
    for key in table:
        if key not in KEYS:
            raise error(key, f"unknown key.{did_you_mean(key, KEYS)} Keys: {', '.join(KEYS)}.")
    if ("metric" in table) == ("file" in table):
        found = "both" if "metric" in table else "neither"
        raise error("", f"needs a metric or a file, and found {found}.")
    misplaced = [key for key in (_OF_FILE if "metric" in table else _OF_METRIC) if key in table]
    if misplaced:
        kind = "metric" if "metric" in table else "file"
        raise error(misplaced[0], f"does not belong to a rule with a {kind}.")
    limits = [key for key in LIMITS if key in table]
    if len(limits) != 1:
        raise error("", f"needs one of {', '.join(LIMITS)}, and found {' and '.join(limits) or 'none'}.")
    [limit] = limits
    fields: dict[str, Any] = {"limit": limit, "value": _number(table, limit, error)}
    if "file" in table:
        fields |= {"file": _file(table, error), "number": _steps(table, error), "fail_if": MEASURED_WORSE}
        allowed: tuple[str, ...] = (MEASURED_WORSE,)  # a single number has no interval
    else:
        fields |= _of_metric(table, error)
        allowed = FAIL_IF
        fields["fail_if"] = SHOWN_WORSE if limit.startswith("max_worse") else MEASURED_WORSE
    if "fail_if" in table:
        fields["fail_if"] = _choice(table, "fail_if", allowed, error)
    if "better" in table:
        fields["higher_is_better"] = _choice(table, "better", ("higher", "lower"), error) == "higher"
        if fields["higher_is_better"] != {"at_most": False, "at_least": True}.get(limit, fields["higher_is_better"]):
            raise error("better", f"found {table['better']!r}, which contradicts {limit}. Leave it out.")
    elif "file" in table and limit.startswith("max_worse"):
        raise error(limit, 'the direction of this number is not known. Add better = "lower" or better = "higher".')
    return Rule(name=name, where=str(error("", "")).removesuffix(": "), **fields)


def _of_metric(table: Mapping[str, Any], error: Any) -> dict[str, Any]:
    metric = table["metric"]
    if not isinstance(metric, str) or not all(metric.partition("/")) or "*" in metric.partition("/")[0]:
        raise error("metric", f'found {metric!r}, allowed is "EVALUATION/NUMBER"; * stands for any text in NUMBER.')
    fields: dict[str, Any] = {"metric": metric}
    for key in ("slices", "except_slices"):
        if key in table:
            value = [table[key]] if isinstance(table[key], str) else table[key]
            if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
                raise error(key, f'found {table[key]!r}, allowed are texts: "*", or ["night", "city/*"].')
            fields[key] = tuple(value)
    if "except_slices" in fields and "slices" not in fields:
        raise error("except_slices", 'needs slices, such as slices = "*".')
    if "min_examples" in table:
        value = table["min_examples"]
        if type(value) is not int or value < 1:
            raise error("min_examples", f"found {value!r}, allowed is a whole number from 1.")
        fields["min_examples"] = value
    if "too_few" in table:
        fields["too_few"] = _choice(table, "too_few", ("fail", "skip"), error)
    return fields


def _number(table: Mapping[str, Any], key: str, error: Any) -> float:
    value = table[key]
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise error(key, f"found {value!r}, allowed is a number.")
    return float(value)


def _choice(table: Mapping[str, Any], key: str, allowed: tuple[str, ...], error: Any) -> str:
    value = table[key]
    if value not in allowed:
        near = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise error(key, f"found {value!r}.{near} Allowed: {', '.join(allowed)}.")
    return value


def _file(table: Mapping[str, Any], error: Any) -> str:
    value = table["file"]
    parts = PurePosixPath(value).parts if isinstance(value, str) else ()
    if not parts or parts[0] == "/" or ".." in parts:
        raise error("file", f'found {value!r}, allowed is a path in the run directory: "export/report.json".')
    return value


def _steps(table: Mapping[str, Any], error: Any) -> tuple[str, ...]:
    if "number" not in table:
        raise error("", 'needs number, the path of the number in the file: "latency.p99_ms".')
    value = table["number"]
    steps = value.split(".") if isinstance(value, str) else value
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step for step in steps):
        raise error("number", f'found {value!r}, allowed is "latency.p99_ms", or ["latency", "p99.9"].')
    return tuple(steps)
