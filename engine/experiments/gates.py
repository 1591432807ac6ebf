"""Gates: rules of a file that a run must keep, alone or compared with another run (`gate_file.py`).

A number is judged by its interval or by itself, as its rule says. What cannot be judged never passes in silence: it
fails, or is skipped and listed, as the rule says.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from scipy import special

from engine.base.errors import ConfigError, RunError
from engine.experiments import gate_numbers, statistics
from engine.experiments.compare import RESAMPLES, Options, compare
from engine.experiments.comparison import Comparison
from engine.experiments.gate_file import NOT_SHOWN_FINE, SHOWN_WORSE, Rule, read_rules
from engine.experiments.gate_numbers import Number
from engine.experiments.variants import Run

TAIL = 0.025  # of a 95 % interval, on each side
ROUNDING = 1e-9  # relative: 0.9 - 0.895 is not above 0.005


class Verdict(enum.StrEnum):
    """What a gate says of a number or of a rule."""

    PASS = "pass"
    FAIL = "fail"
    TOO_FEW = "too few"
    """Of a number: it cannot be judged. The rule fails or skips it."""
    SKIPPED = "skipped"
    """Of a rule: it skipped all its numbers."""


@dataclass(frozen=True)
class Judged:
    """A number with its verdict.

    Attributes:
        number: the number.
        verdict: PASS, FAIL or TOO_FEW.
        allowed: the worst value that is allowed; NaN if there is none, as for a base without a value.
        reason: why the number fails or cannot be judged; "" if its rule says it.
        p: two-sided p-value of the hypothesis that the true value is the allowed one, corrected for the number of
            numbers of the rule (Holm); NaN for rules that do not use it.
    """

    number: Number
    verdict: Verdict
    allowed: float = math.nan
    reason: str = ""
    p: float = math.nan


@dataclass(frozen=True)
class RuleResult:
    """A rule with its verdict, and those of its numbers."""

    rule: Rule
    verdict: Verdict
    numbers: Sequence[Judged]


@dataclass(frozen=True)
class GateResult:
    """What a gate says of a run.

    Attributes:
        file: the file of the rules.
        base: the runs that were compared with; empty if there are none.
        runs: the runs that were judged.
        rules: the rules with their verdicts.
    """

    file: str
    base: Sequence[Run]
    runs: Sequence[Run]
    rules: Sequence[RuleResult]

    @property
    def passed(self) -> bool:
        """Whether no rule fails, and at least one judged something."""
        verdicts = [result.verdict for result in self.rules]
        return Verdict.FAIL not in verdicts and Verdict.PASS in verdicts

    @property
    def text(self) -> str:
        """The verdicts as text, for a terminal or the message of a failed test."""
        from engine.experiments.gate_text import text

        return text(self)

    @property
    def markdown(self) -> str:
        """The verdicts as Markdown, for a code review."""
        from engine.experiments.gate_text import markdown

        return markdown(self)


def check(
    run: str | PathLike[str] | Sequence[str | PathLike[str]],
    gate: str | PathLike[str],
    base: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    *,
    resamples: int = RESAMPLES,
    group: str = "",
) -> GateResult:
    """Judges a run by the rules of a file.

    Args:
        run: the run directory; or several, which differ in nothing but the seed.
        gate: the file of the rules.
        base: the run, or runs, that it is compared with; without any, the rules must not compare.
        resamples: number of resamples of the bootstrap.
        group: tag whose values are resampled instead of single examples, such as "scene".

    Raises:
        ConfigError: the file is wrong, or a rule compares and there is no base.
        RunError: a directory is no run, or has not what a rule is about.
    """
    rules = read_rules(Path(gate))
    before, after = _paths(base), _paths(run)
    found = compare([*before, *after], Options(group=group, resamples=resamples, examples=0)) if before else None
    result = judge(rules, str(gate), found, after, resamples=resamples, group=group)
    if found is not None and [each.folder for each in result.base] != before:
        raise ConfigError(f"{', '.join(map(str, before))}: differ in more than the seed, so they are no single base.")
    return result


def judge(
    rules: Sequence[Rule],
    file: str,
    found: Comparison | None,
    alone: Sequence[Path] = (),
    *,
    resamples: int = RESAMPLES,
    group: str = "",
) -> GateResult:
    """Judges runs by rules.

    Args:
        rules: the rules.
        file: the file that they are from.
        found: the comparison of the runs with their base; None: there is no base.
        alone: the runs to judge if there is no comparison.
        resamples: number of resamples of the bootstrap for limits.
        group: tag whose values are resampled.

    Raises:
        ConfigError: a rule compares and there is no base, or several settings are compared with it.
        RunError: a run has not what a rule is about.
    """
    if found is not None and len(found.variants) != 2:
        names = ", ".join(variant.name for variant in found.variants)
        raise ConfigError(
            f"{file}: a gate judges one setting against its base, and found {len(found.variants)}: {names}. Name "
            "fewer runs."
        )
    groups = [[Path(run.path) for run in variant.runs] for variant in found.variants] if found else [[], alone]
    base, runs = ([Run.read(folder) for folder in folders] for folders in groups)
    return GateResult(file, base, runs, [_judge(rule, found, base, runs, resamples, group) for rule in rules])


def _paths(given: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | PathLike) else [Path(each) for each in given]


def _judge(
    rule: Rule, found: Comparison | None, base: Sequence[Run], runs: Sequence[Run], resamples: int, group: str
) -> RuleResult:
    if rule.compares and found is None:
        raise ConfigError(
            f"{rule.where}: {rule.limit} compares with a base, and there is none. Write convoy compare BASE RUN "
            "--gate=FILE."
        )
    if rule.file:
        numbers = [number for run in runs for number in gate_numbers.file_numbers(rule, run, base)]
    elif rule.compares and found is not None:
        numbers = gate_numbers.compared_numbers(rule, found, [*base, *runs])
    else:
        numbers = [number for run in runs for number in gate_numbers.limited_numbers(rule, run, resamples, group)]
    judged = [_judge_number(rule, number) for number in numbers]
    if rule.fail_if == SHOWN_WORSE:
        judged = _corrected(judged)
    verdicts = [each.verdict for each in judged]
    if Verdict.FAIL in verdicts or (rule.too_few == "fail" and Verdict.TOO_FEW in verdicts):
        return RuleResult(rule, Verdict.FAIL, judged)
    return RuleResult(rule, Verdict.PASS if Verdict.PASS in verdicts else Verdict.SKIPPED, judged)


def _judge_number(rule: Rule, number: Number) -> Judged:
    """Judges a number by itself or by its interval. SHOWN_WORSE needs p-values of all numbers: `_corrected`."""
    higher = number.higher_is_better
    if rule.compares and higher is None:
        raise RunError(
            f"{rule.where}: {number.name}: neither the metric nor its name says whether larger is better. Add "
            'better = "lower" or better = "higher".'
        )
    wanted = rule.limit == "at_least" if not rule.compares else higher
    if higher is not None and higher != wanted:
        other = "at_least" if higher else "at_most"
        raise RunError(
            f"{rule.where}: {number.name} is better when it is {'higher' if higher else 'lower'}, so {rule.limit} "
            f'would pass bad runs. Write {other}, or better = "{"higher" if wanted else "lower"}" if you mean it.'
        )
    if rule.needs_interval and number.problem:
        raise RunError(f"{rule.where}: fail_if = {rule.fail_if} needs an interval. {number.problem}")
    if rule.min_examples is not None and number.examples is None:
        raise RunError(
            f"{rule.where}: min_examples: the number of examples of {number.name} is not known. "
            f"{number.problem}".rstrip()
        )
    allowed = rule.value
    if number.base is not None:
        margin = rule.value if rule.limit == "max_worse" else rule.value / 100 * abs(number.base)
        allowed = number.base - margin if wanted else number.base + margin
    if number.base is not None and math.isfinite(number.base) and not math.isfinite(number.value):
        return Judged(number, Verdict.FAIL, allowed, "no finite value")  # the same examples have one in the base
    if number.examples is not None and number.examples < max(1, rule.min_examples or 1):
        return Judged(number, Verdict.TOO_FEW, allowed)
    if number.base is not None and not math.isfinite(number.base):
        return Judged(number, Verdict.TOO_FEW, allowed, "the base has no finite value")
    if not math.isfinite(number.value):
        return Judged(number, Verdict.FAIL, allowed, "no finite value")
    worst = number.value
    if rule.needs_interval:
        if math.isnan(number.interval.low):
            return Judged(number, Verdict.TOO_FEW, allowed)
        if rule.fail_if == NOT_SHOWN_FINE:
            worst = (number.base or 0.0) + (number.interval.low if wanted else number.interval.high)
        else:
            return Judged(number, Verdict.PASS, allowed, p=_p_worse(number, allowed, bool(wanted)))
    beyond = (allowed - worst) if wanted else (worst - allowed)
    is_worse = beyond > ROUNDING * max(abs(allowed), abs(worst), abs(number.base or 0.0))
    return Judged(number, Verdict.FAIL if is_worse else Verdict.PASS, allowed)


def _p_worse(number: Number, allowed: float, higher_is_better: bool) -> float:
    """Returns the one-sided p-value of the hypothesis that the true value is not worse than the allowed one.

    It is that of a t value whose scale is the interval's arm on the side of the allowed value. So it is below 2.5 %
    exactly if the interval of 95 % lies beyond the allowed value, and it is that of the t test for seeds.
    """
    sign, base, interval = -1.0 if higher_is_better else 1.0, number.base or 0.0, number.interval
    near, far = sorted(sign * (x + base) for x in (interval.low, interval.high))
    center, limit = sign * (interval.estimate + base), sign * allowed
    if not near <= center <= far:  # a strong bias of the bootstrap
        center = (near + far) / 2
    arm = center - near if limit < center else far - center
    smallest = ROUNDING * max(abs(center), abs(limit), abs(base))
    if arm <= smallest:  # no example differs
        return 0.0 if center - limit > smallest else 1.0
    t = (center - limit) / arm * -float(special.stdtrit(number.freedom, TAIL))
    return float(special.stdtr(number.freedom, -t))


def _corrected(judged: Sequence[Judged]) -> list[Judged]:
    """Fails the numbers that are shown to be worse after the correction for how many the rule judges (Holm)."""
    found = []
    for each, p in zip(judged, statistics.holm([each.p for each in judged]), strict=True):
        if not math.isnan(p):
            verdict = Verdict.FAIL if p < TAIL - ROUNDING else Verdict.PASS
            each = replace(each, p=min(1.0, 2 * p), verdict=verdict)
        found.append(each)
    return found
