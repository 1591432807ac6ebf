"""The text and the Markdown of a gate."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from engine.experiments import gate_text
from engine.experiments.gate_file import Rule
from engine.experiments.gate_numbers import Number
from engine.experiments.gates import GateResult, Judged, RuleResult, Verdict
from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval
from engine.experiments.variants import Run


def run(name: str, seed: int, **code: object) -> Run:
    record = RunRecord(path=name, state="done", config={"train.seed": seed})
    return Run(Path(name), record, code, {}, {"data": "0123456789abcdef", "evaluations.val.data": "fedc"})


def number(part: str, verdict: Verdict, low: float, high: float, p: float = math.nan, examples: int = 812) -> Judged:
    found = Number(
        name="val/error", run="b", value=1.25, part=part, base=1.0, interval=Interval(0.25, low, high, math.nan),
        examples=examples,
    )  # fmt: skip
    return Judged(found, verdict, 1.1, p=p)


RULES = (
    RuleResult(
        Rule(
            name="slices", where="", metric="val/error", slices=("*",), except_slices=("old|new",), min_examples=1200,
            limit="max_worse", value=0.1, fail_if="shown_worse", too_few="skip",
        ),
        Verdict.FAIL,
        [
            number("day", Verdict.PASS, 0.05, 0.4, 0.3, 1234),
            number("fog", Verdict.TOO_FEW, math.nan, math.nan),
            number("night", Verdict.FAIL, 0.2, 0.3, 0.0001, 5678),
        ],
    ),
    RuleResult(
        Rule(
            name="latency", where="", file="r.json", number=("p99",), limit="at_most", value=30,
            fail_if="measured_worse",
        ),
        Verdict.PASS,
        [Judged(Number(name="r.json: p99", run="b", value=28.5), Verdict.PASS, 30.0)],
    ),
)  # fmt: skip
FOUND = GateResult(
    "gate.toml", [run("a", 0, commit="abc123", **{"uncommitted changes": False})],
    [run("b", 1, commit="def456", **{"uncommitted changes": True})], RULES,
)  # fmt: skip


def test_text_has_each_rule_with_its_numbers_those_that_fail_first():
    assert (
        gate_text.text(FOUND)
        == """\
FAIL  slices: val/error of the slices * except old|new with at least 1,200 examples; worse than the base by at most 0.1; fails if shown to be worse (95 %, Holm over 2); too few: skip
  verdict  number     slice  examples  base  run   difference  95 % interval  allowed  p (Holm)
  fail     val/error  night  5,678     1     1.25  +0.25       +0.2 to +0.3   <= 1.1   < 0.001
  too few  val/error  fog    812       1     1.25  +0.25       none           <= 1.1   -
  pass     val/error  day    1,234     1     1.25  +0.25       +0.05 to +0.4  <= 1.1   0.300

PASS  latency: r.json: p99; at most 30; judged by the measured value
  verdict  number       value  allowed
  pass     r.json: p99  28.5   <= 30

gate FAILED: 1 of 2 rules failed"""  # noqa: E501
    )


def test_markdown_names_the_runs_with_commit_and_data():
    assert (
        gate_text.markdown(FOUND)
        == r"""**FAILED** gate.toml: 1 of 2 rules failed.

| run | seed | commit | data |
| --- | --- | --- | --- |
| a (base) | 0 | abc123 | data 0123456789ab, evaluations.val.data fedc |
| b (judged) | 1 | def456 with uncommitted changes | data 0123456789ab, evaluations.val.data fedc |

| verdict | rule | what it demands |
| --- | --- | --- |
| FAIL | slices | val/error of the slices \* except old\|new with at least 1,200 examples; worse than the base by at most 0.1; fails if shown to be worse (95 %, Holm over 2); too few: skip |
| PASS | latency | r.json: p99; at most 30; judged by the measured value |

slices: fail

| verdict | number | slice | examples | base | run | difference | 95 % interval | allowed | p (Holm) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| fail | val/error | night | 5,678 | 1 | 1.25 | +0.25 | +0.2 to +0.3 | <= 1.1 | < 0.001 |
| too few | val/error | fog | 812 | 1 | 1.25 | +0.25 | none | <= 1.1 | - |
| pass | val/error | day | 1,234 | 1 | 1.25 | +0.25 | +0.05 to +0.4 | <= 1.1 | 0.300 |

latency: pass

| verdict | number | value | allowed |
| --- | --- | --- | --- |
| pass | r.json: p99 | 28.5 | <= 30 |
"""  # noqa: E501
    )


def test_many_numbers_are_counted_by_verdict():
    rule = Rule(name="r", where="", metric="val/*", limit="at_most", value=1, fail_if="measured_worse")
    judged = [Judged(Number(name=f"val/{at}", run="b", value=0.5), Verdict.PASS, 1.0) for at in range(14)]
    text = gate_text.text(GateResult("g", [], [run("b", 0)], [RuleResult(rule, Verdict.PASS, judged)]))
    assert "and 4 more numbers (4 pass): --json has all." in text
    assert text.endswith("gate passed: the rule is kept")


def test_run_without_code_and_data_is_said_to_be_unknown():
    other = Run(run("c", 2).folder, run("c", 2).record, {}, {}, {})
    text = gate_text.markdown(GateResult("g", [], [other], RULES))
    assert "| c | 2 | unknown | unknown |" in text


def test_run_that_is_not_done_is_named():
    note = "b: its state is training at step 2 of 5."
    other = replace(run("b", 1), notes=(note,))
    alone, compared = GateResult("g", [], [other], RULES), GateResult("g", [run("a", 0)], [other], RULES)
    assert f"\n\n{note}\n\ngate FAILED" in gate_text.text(alone)
    assert note not in gate_text.text(compared)  # the comparison has it
    assert f"\n\n{note}\n\n| verdict" in gate_text.markdown(compared)


@pytest.mark.parametrize(
    ("fail_if", "words"),
    [
        ("shown_worse", "fails if shown to be worse (95 %, Holm over 0)"),
        ("not_shown_fine", "fails unless this is shown (95 %)"),
        ("measured_worse", "judged by the measured value"),
    ],
)
def test_sentence_of_each_kind(fail_if, words):
    rule = Rule(name="r", where="", metric="val/x", limit="max_worse_percent", value=2, fail_if=fail_if)
    sentence = gate_text.sentence(
        RuleResult(rule, Verdict.PASS, [Judged(Number(name="x", run="", value=1), Verdict.PASS)])
    )
    assert sentence == f"val/x; worse than the base by at most 2 % of its value; {words}; too few: fail"
