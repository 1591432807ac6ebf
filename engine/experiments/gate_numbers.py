"""Finds the numbers that a rule of a gate is about.

A pattern that matches nothing, and a number or slice that only one of the runs has, are errors: what is missing must
not count as passed.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.base import json_text
from engine.base.errors import RunError, did_you_mean
from engine.experiments import statistics
from engine.experiments.comparison import WHOLE, Basis, Comparison, Difference
from engine.experiments.gate_file import Rule
from engine.experiments.record import RunRecord
from engine.experiments.resampling import resampler
from engine.experiments.statistics import NO_INTERVAL, Interval
from engine.experiments.variants import Run
from engine.metrics.direction import higher_is_better
from engine.metrics.example_file import read_parquet, slice_names
from engine.metrics.slices import COUNT, Examples

NAN = math.nan
SHOWN = 20  # names that an error lists


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number that a rule judges.

    Attributes:
        name: "EVALUATION/NUMBER", or the path in a JSON file.
        part: a slice, or WHOLE.
        run: the run that has it.
        base: its value in the base; None for a limit, which compares with no run.
        value: its value in the run.
        interval: of `value - base`, or of `value`; its limits are NaN if there is none.
        freedom: degrees of freedom of the interval.
        examples: number of examples; None if it is not known.
        higher_is_better: None if it is not known.
        problem: why it has no interval, if it never can have one; "" otherwise.
    """

    name: str
    run: str
    value: float
    part: str = WHOLE
    base: float | None = None
    interval: Interval = NO_INTERVAL
    freedom: float = math.inf
    examples: int | None = None
    higher_is_better: bool | None = None
    problem: str = ""


def compared_numbers(rule: Rule, found: Comparison, runs: Sequence[Run]) -> list[Number]:
    """Returns the numbers of a rule that compares two runs, `max_worse` or `max_worse_percent`.

    Args:
        rule: the rule.
        found: the comparison of the base with one variant.
        runs: all runs of the comparison.

    Raises:
        RunError: a pattern matches nothing, or something that only one of the runs has.
    """
    evaluation, _, pattern = rule.metric.partition("/")
    _check_evaluation(rule, evaluation, runs)
    results = {(r.metric, r.part): r for r in found.results if r.evaluation == evaluation}
    slices = {run.record.path: _slices(run, evaluation) for run in runs}
    shared = {metric for metric, part in results if part == WHOLE}
    names = {run.record.path: shared | _recorded(run.record, evaluation, slices[run.record.path]) for run in runs}
    metrics = _in_all(rule, "metric", [pattern], names, lambda name: f"{evaluation}/{name}")
    compared = {part for metric, part in results if part}  # also slices that one run alone has, of the same examples
    parts = _parts(rule, {run: {*own, *compared} for run, own in slices.items()})
    note = " ".join(note for note in found.notes if note.startswith(f"{evaluation}: ") and "no interval" in note)
    numbers = []
    for metric, part in itertools.product(metrics, parts):
        name, result = f"{evaluation}/{metric}", results.get((metric, part))
        if result is not None:
            direction = result.higher_is_better if rule.higher_is_better is None else rule.higher_is_better
            numbers.append(
                Number(
                    name=name,
                    part=part,
                    run=found.variants[result.variant].name,
                    base=result.first,
                    value=result.second,
                    interval=result.interval,
                    freedom=_freedom(result),
                    examples=result.examples or None,
                    higher_is_better=direction,
                    problem=note if result.basis is Basis.NONE and not result.groups else "",
                )
            )
        elif (metric, WHOLE) in results and not note:  # the runs share no example of the slice
            numbers.append(Number(name=name, part=part, run=runs[-1].record.path, base=NAN, value=NAN, examples=0))
        else:
            what = f"{name} of the slice {part}" if part else name
            raise RunError(f"{rule.where}: {what} cannot be compared. {note}".rstrip())
    return numbers


def limited_numbers(rule: Rule, run: Run, resamples: int, group: str) -> list[Number]:
    """Returns the numbers of a run that a rule limits with `at_most` or `at_least`.

    They are computed from the metrics of its examples if the run kept them, and else those that it recorded.

    Args:
        rule: the rule.
        run: the run.
        resamples: number of resamples of the bootstrap, for a rule that needs intervals.
        group: tag whose values are resampled; "" for single examples.

    Raises:
        RunError: a pattern matches nothing, or a file of metrics of examples is damaged.
    """
    evaluation, _, pattern = rule.metric.partition("/")
    _check_evaluation(rule, evaluation, [run])
    known = _OfExamples(run, evaluation, group) if evaluation in run.files else _Recorded(run, evaluation)
    path = run.record.path
    metrics = _in_all(rule, "metric", [pattern], {path: known.names}, lambda name: f"{evaluation}/{name}")
    parts = _parts(rule, {path: known.slices})
    numbers = []
    for metric, part in itertools.product(metrics, parts):
        examples, groups, interval = known.interval(metric, part, resamples if rule.needs_interval else 0)
        numbers.append(
            Number(
                name=f"{evaluation}/{metric}",
                part=part,
                run=path,
                value=interval.estimate,
                interval=interval,
                freedom=max(groups - 1, 1),
                examples=examples,
                higher_is_better=known.direction(metric) if rule.higher_is_better is None else rule.higher_is_better,
                problem=known.problem,
            )
        )
    return numbers


class _Recorded:
    """The numbers of an evaluation that a run recorded, which have no intervals."""

    def __init__(self, run: Run, evaluation: str):
        self._metrics, self._evaluation = run.record.metrics, evaluation
        self.slices = _recorded_slices(run.record, evaluation)
        self.names = _recorded(run.record, evaluation, self.slices)
        flag = f"--evaluations.{evaluation}.per_example=True"
        self.problem = f"{run.folder} kept no metrics of its examples. Add them: convoy evaluate {run.folder} {flag}"

    def direction(self, name: str) -> bool | None:
        return higher_is_better(name)

    def interval(self, name: str, part: str, resamples: int) -> tuple[int | None, int, Interval]:
        """Returns the number of examples, of groups, and the number; NaN if it was not finite."""
        count = self._metrics.get(f"{self._evaluation}/{part}/{COUNT}") if part else None
        value = self._metrics.get("/".join(filter(None, (self._evaluation, part, name))), NAN)
        return None if count is None else int(count), 0, NO_INTERVAL._replace(estimate=value)


class _OfExamples:
    """The numbers of an evaluation from the metrics of its examples."""

    problem = ""

    def __init__(self, run: Run, evaluation: str, group: str):
        self._examples: Examples = read_parquet(run.files[evaluation])
        self._groups = self._examples.tags.get(group, self._examples.indices)
        self._metrics = {name: resampler(name, metric) for name, metric in self._examples.metrics.items()}
        once = np.ones((1, len(self._examples.indices)), np.int64)
        self.slices = list(self._examples.slices)
        self.names = {
            "/".join(filter(None, (metric, key))): (metric, key)
            for metric, each in self._metrics.items()
            for key in each.numbers(once)
        }

    def direction(self, name: str) -> bool | None:
        return higher_is_better(name, self._examples.metrics[self.names[name][0]])

    def interval(self, name: str, part: str, resamples: int) -> tuple[int | None, int, Interval]:
        """Returns the number of examples, of groups, and the number with its interval."""
        everything = np.arange(len(self._examples.indices))
        rows = np.flatnonzero(self._examples.slices[part]) if part else everything
        if not len(rows):
            return 0, 0, NO_INTERVAL
        (metric, key), (found, group_of) = self.names[name], np.unique(self._groups[rows], return_inverse=True)
        chosen, groups = self._metrics[metric].subset(rows), len(found)
        estimate = float(chosen.numbers(np.ones((1, len(rows)), np.int64)).get(key, [NAN])[0])
        draws = [np.zeros(0)]
        for counts in statistics.group_counts(groups, resamples if groups >= statistics.FEWEST_GROUPS else 0, seed=0):
            draws.append(chosen.numbers(counts[:, group_of]).get(key, np.zeros(0)))
        return len(rows), groups, statistics.bootstrap_interval(estimate, np.concatenate(draws), groups)


def file_numbers(rule: Rule, run: Run, base: Sequence[Run]) -> list[Number]:
    """Returns a number of a JSON file of a run; if the rule compares, with that of each run of the base.

    Raises:
        RunError: the file is missing or damaged, or has no such number.
    """
    value = _in_file(rule, run)
    return [
        Number(name=rule.label, run=run.record.path, base=each, value=value, higher_is_better=rule.higher_is_better)
        for each in ([_in_file(rule, other) for other in base] if rule.compares else [None])
    ]


def _in_file(rule: Rule, run: Run) -> float:
    path = run.folder / rule.file
    try:
        value = json_text.read(path, constants=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{rule.where}: {path}: cannot be read ({json_text.reason(error)}).") from error
    for depth, step in enumerate(rule.number):
        below: Mapping[str, Any] = value if isinstance(value, dict) else {}
        if isinstance(value, list):
            below = {str(at): item for at, item in enumerate(value)}
        if step not in below:
            above = ".".join(rule.number[:depth]) or "the file"
            near, known = did_you_mean(step, below), ", ".join(list(below)[:SHOWN]) or "nothing"
            raise RunError(f"{rule.where}: {path}: there is no {step!r} in {above}.{near} It has {known}.")
        value = below[step]
    if type(value) not in (int, float):
        found = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
        raise RunError(f"{rule.where}: {path}: {'.'.join(rule.number)} is {found}, and no number.")
    return float(value)


def _slices(run: Run, evaluation: str) -> list[str]:
    file = run.files.get(evaluation)
    return slice_names(file) if file else _recorded_slices(run.record, evaluation)


def _recorded_slices(run: RunRecord, evaluation: str) -> list[str]:
    """Returns the slices whose results a run recorded: "heldout/night/examples" is the size of one."""
    names = [name.removeprefix(f"{evaluation}/") for name in run.metrics if name.startswith(f"{evaluation}/")]
    return [name.removesuffix(f"/{COUNT}") for name in names if name.endswith(f"/{COUNT}")]


def _recorded(run: RunRecord, evaluation: str, slices: Iterable[str]) -> set[str]:
    """Returns the names of the numbers over all examples that a run recorded."""
    names = [name.removeprefix(f"{evaluation}/") for name in run.metrics if name.startswith(f"{evaluation}/")]
    prefixes = tuple(f"{part}/" for part in {*slices, *_recorded_slices(run, evaluation)})
    return {name for name in names if not name.startswith(prefixes)}


def _freedom(result: Difference) -> float:
    """Returns the degrees of freedom of the interval of a difference."""
    first, second = (np.asarray(values, np.float64) for values in (result.first_values, result.second_values))
    if result.basis is Basis.EXAMPLES:
        return max(result.groups - 1, 1)
    if result.basis is Basis.SEPARATE_SEEDS:
        a, b = (max(float(x.var(ddof=1)) / len(x), 1e-300) for x in (first, second))
        return (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return max(len(first) - 1, 1)


def _parts(rule: Rule, slices: Mapping[str, Iterable[str]]) -> list[str]:
    if not rule.slices:
        return [WHOLE]
    left_out = _matcher(rule.except_slices)
    _in_some(rule, "except_slices", rule.except_slices, slices)
    kept = {run: [name for name in names if not left_out(name)] for run, names in slices.items()}
    return _in_all(rule, "slices", rule.slices, kept, str)


def _in_all(
    rule: Rule, key: str, patterns: Sequence[str], names: Mapping[str, Iterable[str]], shown: Callable[[str], str]
) -> list[str]:
    """Returns the names that match a pattern and that all runs have, sorted. Raises RunError.

    Args:
        rule: the rule.
        key: its key that has the patterns.
        patterns: the patterns.
        names: run -> the names that it has.
        shown: writes a name as in the file.
    """
    chosen = _in_some(rule, key, patterns, names)
    for name in chosen:
        having = [run for run in names if name in set(names[run])]
        if len(having) < len(names):
            lacking = next(run for run in names if run not in having)
            advice = "Evaluate that run again with it" + (", or name it in except_slices." if key == "slices" else ".")
            raise RunError(f"{rule.where}: {key}: {having[0]} has {shown(name)!r}, and {lacking} does not. {advice}")
    return chosen


def _check_evaluation(rule: Rule, evaluation: str, runs: Sequence[Run]) -> None:
    """Raises RunError if no run has results of an evaluation."""
    results = {name.partition("/")[0] for run in runs for name in run.record.metrics if "/" in name}
    known = sorted(results | {name for run in runs for name in run.files})
    if evaluation not in known:
        where = " and ".join(run.record.path for run in runs)
        near, listed = did_you_mean(evaluation, known), ", ".join(known[:SHOWN]) or "none"
        raise RunError(f"{rule.where}: metric: {where}: no evaluation {evaluation!r}.{near} There: {listed}.")


def _in_some(rule: Rule, key: str, patterns: Sequence[str], names: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns the names of any run that match a pattern, sorted. Raises RunError for a pattern that matches none."""
    known = sorted({name for each in names.values() for name in each})
    for pattern in patterns:
        if not any(map(_matcher([pattern]), known)):
            near, listed = did_you_mean(pattern, known), ", ".join(known[:SHOWN]) or "none"
            where = " and ".join(names)
            raise RunError(f"{rule.where}: {key}: {pattern!r} matches nothing in {where}.{near} There: {listed}.")
    return [name for name in known if _matcher(patterns)(name)]


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Returns whether a name matches one of several patterns, in which `*` stands for any text."""
    parts = ["(?:" + ".*".join(map(re.escape, pattern.split("*"))) + ")" for pattern in patterns]
    expression = re.compile("|".join(parts) if parts else r"(?!)", re.DOTALL)
    return lambda name: expression.fullmatch(name) is not None
