"""The verdicts of a gate as text for a terminal, as Markdown for a code review, and as JSON."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.base import formatting
from engine.base.errors import ConvoyError, RunError
from engine.experiments.gate_file import MEASURED_WORSE, NOT_SHOWN_FINE, SHOWN_WORSE, Rule
from engine.experiments.gates import GateResult, Judged, RuleResult, Verdict
from engine.experiments.variants import Run

MOST = 10  # lines of numbers of one rule
_ORDER = (Verdict.FAIL, Verdict.TOO_FEW, Verdict.PASS)
_LIMITS = {
    "max_worse": "worse than the base by at most {}",
    "max_worse_percent": "worse than the base by at most {} % of its value",
    "at_most": "at most {}",
    "at_least": "at least {}",
}
_FAIL_IF = {
    SHOWN_WORSE: "fails if shown to be worse (95 %, Holm over {count})",
    NOT_SHOWN_FINE: "fails unless this is shown (95 %)",
    MEASURED_WORSE: "judged by the measured value",
}


def sentence(result: RuleResult) -> str:
    """Returns the rule as a sentence."""
    rule = result.rule
    parts = [rule.label]
    if rule.slices:
        left_out = f" except {', '.join(rule.except_slices)}" if rule.except_slices else ""
        parts[0] += f" of the slices {', '.join(rule.slices)}{left_out}"
    if rule.min_examples is not None:
        parts[0] += f" with at least {rule.min_examples:,} examples"
    parts.append(_LIMITS[rule.limit].format(f"{rule.value:g}"))
    judged = sum(not math.isnan(each.p) for each in result.numbers)
    parts.append(_FAIL_IF[rule.fail_if].format(count=judged))
    if rule.metric:
        parts.append(f"too few: {rule.too_few}")
    return "; ".join(parts)


def headline(found: GateResult) -> str:
    """Returns the verdict in one line."""
    count, texts = len(found.rules), []
    for verdict, words in ((Verdict.FAIL, "failed"), (Verdict.SKIPPED, "judged nothing")):
        if number := sum(result.verdict is verdict for result in found.rules):
            texts.append(f"{number} of {count} rules {words}")
    if found.passed:
        return f"gate passed: {', '.join([*texts, 'no rule failed']) if texts else f'{_rules(count)} kept'}"
    return f"gate FAILED: {', '.join(texts)}"


def _rules(count: int) -> str:
    return "the rule is" if count == 1 else f"all {count} rules are"


def text(found: GateResult) -> str:
    """Returns the verdict of each rule with its numbers, for a terminal; the verdict of the gate comes last."""
    parts = []
    for result in found.rules:
        head, rows = table(found, result)
        lines = [f"{result.verdict.upper()}  {result.rule.name}: {sentence(result)}"]
        lines += [f"  {line}" for line in formatting.aligned([head, *rows])]
        lines += [f"  {more}" for more in _more(result)]
        parts.append("\n".join(lines))
    notes = [] if found.base else _notes(found)  # a comparison prints them already
    return "\n\n".join([*parts, *notes, headline(found)])


def _notes(found: GateResult) -> list[str]:
    """Returns what to know of the runs, such as that one still trains."""
    return list(dict.fromkeys(note for run in (*found.base, *found.runs) for note in run.notes))


def markdown(found: GateResult) -> str:
    """Returns the verdict, the runs with commit and data, and the numbers of each rule, as Markdown."""
    lines = [f"**{'PASSED' if found.passed else 'FAILED'}** {_cell(found.file)}: {headline(found).partition(': ')[2]}."]
    lines += [
        "",
        *_markdown(["run", "seed", "commit", "data"], [_run(run, found) for run in (*found.base, *found.runs)]),
    ]
    lines += [f"\n{_cell(note)}" for note in _notes(found)]
    rows = [[result.verdict.upper(), result.rule.name, sentence(result)] for result in found.rules]
    lines += ["", *_markdown(["verdict", "rule", "what it demands"], rows)]
    for result in found.rules:
        lines += ["", f"{_cell(result.rule.name)}: {result.verdict}", "", *_markdown(*table(found, result))]
        lines += ["", *more] if (more := _more(result)) else []
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def written(path: str | None) -> Iterator[list[str]]:
    """Writes the texts that its block adds to a list, as Markdown; an error instead, if the block raises one.

    So a file from an earlier gate is replaced, even if this one could not be judged. Without a path, nothing is
    written.

    Raises:
        RunError: the file cannot be written.
    """
    texts: list[str] = []
    try:
        yield texts
    except ConvoyError as error:
        if path:
            _write(path, f"**NO VERDICT** {_cell(f'{error.kind}: {error}')}\n")
        raise
    if path:
        _write(path, "".join(texts))


def _write(path: str, content: str) -> None:
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise RunError(f"--markdown={path}: cannot be written ({error.strerror}).") from error


def table(found: GateResult, result: RuleResult) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the numbers of a rule: those that fail first, at most MOST."""
    rule = result.rule
    many = len({each.number.run for each in result.numbers}) > 1
    head = ["verdict", "number", *(["slice"] if rule.slices else []), *(["run"] if many else [])]
    head += ["examples"] if rule.metric else []
    head += ["base", "run", "difference"] if rule.compares else ["value"]
    head += ["95 % interval"] if rule.needs_interval else []
    head += ["allowed", *(["p (Holm)"] if rule.fail_if == SHOWN_WORSE else [])]
    return head, [_row(rule, each, many) for each in _shown(result)]


def _shown(result: RuleResult) -> list[Judged]:
    def key(each: Judged) -> tuple[int, float]:
        return _ORDER.index(each.verdict), 1.0 if math.isnan(each.p) else each.p

    return sorted(result.numbers, key=key)[:MOST]


def _more(result: RuleResult) -> list[str]:
    left = sorted(result.numbers, key=lambda each: _ORDER.index(each.verdict))[MOST:]
    counts = {verdict: sum(each.verdict is verdict for each in left) for verdict in _ORDER}
    texts = [f"{count:,} {verdict}" for verdict, count in counts.items() if count]
    return [f"and {len(left):,} more numbers ({', '.join(texts)}): --json has all."] if left else []


def _row(rule: Rule, each: Judged, many: bool) -> list[str]:
    number, interval = each.number, each.number.interval
    row = [f"{each.verdict}{f': {each.reason}' if each.reason else ''}", number.name]
    row += [number.part or "all"] if rule.slices else []
    row += [number.run] if many else []
    row += ["-" if number.examples is None else f"{number.examples:,}"] if rule.metric else []
    if rule.compares and number.base is not None:
        row += [formatting.number(number.base), formatting.number(number.value), f"{number.value - number.base:+.4g}"]
    else:
        row.append(formatting.number(number.value))
    if rule.needs_interval:
        sign = "+" if rule.compares else ""
        row.append("none" if math.isnan(interval.low) else f"{interval.low:{sign}.4g} to {interval.high:{sign}.4g}")
    row.append("-" if math.isnan(each.allowed) else _allowed(rule, each))
    if rule.fail_if == SHOWN_WORSE:
        row.append("-" if math.isnan(each.p) else "< 0.001" if each.p < 0.001 else f"{each.p:.3f}")
    return row


def _allowed(rule: Rule, each: Judged) -> str:
    is_floor = bool(each.number.higher_is_better) if rule.compares else rule.limit == "at_least"
    return f"{'>=' if is_floor else '<='} {formatting.number(each.allowed)}"


def _run(run: Run, found: GateResult) -> list[str]:
    role = "base" if run in found.base and run not in found.runs else "judged"
    changed = {True: " with uncommitted changes", False: "", None: " (uncommitted changes are unknown)"}
    commit = run.code.get("commit") or ""
    data = ", ".join(f"{name} {content[:12]}" for name, content in run.data.items())
    shown = f"{commit}{changed.get(run.code.get('uncommitted changes'), '')}" if commit else "unknown"
    return [f"{run.folder} ({role})" if found.base else str(run.folder), str(run.seed), shown, data or "unknown"]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: str) -> str:
    """Returns a text in which Markdown sees no end of a cell and no emphasis."""
    return value.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def to_json(found: GateResult) -> dict[str, Any]:
    """Returns the verdicts as values of JSON, for `json_text.dumps`; what has no value is NaN there."""
    return {
        "file": found.file,
        "passed": found.passed,
        "base": [str(run.folder) for run in found.base],
        "runs": [str(run.folder) for run in found.runs],
        "rules": [
            {
                "name": result.rule.name,
                "verdict": str(result.verdict),
                "demands": sentence(result),
                "numbers": [_number(each) for each in result.numbers],
            }
            for result in found.rules
        ],
    }


def _number(each: Judged) -> dict[str, Any]:
    number = each.number
    return {
        "name": number.name,
        "slice": number.part,
        "run": number.run,
        "examples": number.examples,
        "base": number.base,
        "value": number.value,
        "interval": [number.interval.low, number.interval.high],
        "allowed": each.allowed,
        "p": each.p,
        "verdict": str(each.verdict),
        "reason": each.reason,
    }
