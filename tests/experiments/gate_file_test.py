"""Rules of a gate: what a file may say, and the error of each mistake."""

import pytest

from engine.base.errors import ConfigError
from engine.experiments.gate_file import read_rules


def rules(tmp_path, text: str):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return read_rules(path)


def rule(tmp_path, text: str):
    return rules(tmp_path, f"[rules.r]\n{text}\n")[0]


def test_rule_that_compares_has_its_defaults(tmp_path):
    found = rule(tmp_path, 'metric = "heldout/accuracy"\nmax_worse = 0.005')
    assert (found.name, found.metric, found.slices, found.limit, found.value) == (
        "r", "heldout/accuracy", (), "max_worse", 0.005,
    )  # fmt: skip
    assert (found.fail_if, found.too_few, found.min_examples, found.higher_is_better) == (
        "shown_worse", "fail", None, None,
    )  # fmt: skip
    assert found.compares and found.where.endswith("gate.toml:1: rules.r")


def test_limit_of_a_metric_is_judged_by_the_measured_value_unless_it_says_otherwise(tmp_path):
    text = 'metric = "heldout/collision_rate"\nat_most = 0.02'
    assert rule(tmp_path, text).fail_if == "measured_worse"
    assert rule(tmp_path, f'{text}\nfail_if = "not_shown_fine"').fail_if == "not_shown_fine"
    assert not rule(tmp_path, text).compares


def test_slices_are_one_pattern_or_several(tmp_path):
    text = 'metric = "heldout/x"\nmax_worse = 0\nslices = '
    assert rule(tmp_path, f'{text}"*"').slices == ("*",)
    found = rule(tmp_path, f'{text}["night", "city/*"]\nexcept_slices = "city/old"')
    assert (found.slices, found.except_slices) == (("night", "city/*"), ("city/old",))


def test_number_of_a_file_is_a_path_of_keys(tmp_path):
    text = 'file = "export/report.json"\nat_most = 30\nnumber = '
    assert rule(tmp_path, f'{text}"latency.p99_ms"').number == ("latency", "p99_ms")
    found = rule(tmp_path, f'{text}["latency", "p99.9"]')
    assert (found.number, found.label, found.fail_if) == (
        ("latency", "p99.9"), "export/report.json: latency.p99.9", "measured_worse",
    )  # fmt: skip


def test_rules_keep_their_order(tmp_path):
    text = "".join(f'[rules.{name}]\nmetric = "a/b"\nat_least = 1\n' for name in "zay")
    assert [each.name for each in rules(tmp_path, text)] == ["z", "a", "y"]


BASE = 'metric = "heldout/x"\nmax_worse = 0.1\n'
FILE = 'file = "a.json"\nnumber = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE + "max_wrose = 1",
            r"gate.toml:4: rules.r.max_wrose: unknown key. Did you mean max_worse or .*\? Keys: metric,",
        ),
        ("max_worse = 1", "gate.toml:1: rules.r: needs a metric or a file, and found neither."),
        (BASE + FILE, "rules.r: needs a metric or a file, and found both."),
        (FILE + "at_most = 1\nslices = '*'", "gate.toml:5: rules.r.slices: does not belong to a rule with a file."),
        (BASE + 'number = "x"', "rules.r.number: does not belong to a rule with a metric."),
        ('metric = "a/b"', "rules.r: needs one of max_worse, max_worse_percent, at_most, at_least, and found none."),
        (BASE + "at_most = 1", "needs one of .*, and found max_worse and at_most."),
        ('metric = "a/b"\nmax_worse = "0.5 %"', "gate.toml:3: rules.r.max_worse: found '0.5 %', allowed is a number."),
        ('metric = "a/b"\nmax_worse = nan', "max_worse: found nan, allowed is a number."),
        ('metric = "a/b"\nmax_worse = true', "max_worse: found True, allowed is a number."),
        ('metric = "accuracy"\nmax_worse = 1', r'metric: found .accuracy., allowed is "EVALUATION/NUMBER"; \* stands'),
        ('metric = "*/accuracy"\nmax_worse = 1', "metric: found .*, allowed is"),
        ("metric = 3\nmax_worse = 1", "metric: found 3, allowed is"),
        (BASE + "slices = []", "slices: found .*, allowed are texts"),
        (BASE + "slices = [1]", "slices: found .1., allowed are texts"),
        (BASE + 'except_slices = "a"', "except_slices: needs slices, such as"),
        (BASE + "min_examples = 0", "min_examples: found 0, allowed is a whole number from 1."),
        (BASE + "min_examples = 2.5", "min_examples: found 2.5, allowed is a whole number from 1."),
        (BASE + 'too_few = "skp"', r"too_few: found .skp.. Did you mean skip\? Allowed: fail, skip."),
        (BASE + 'fail_if = "shown"', "fail_if: found .shown.. .*Allowed: shown_worse, not_shown_fine, measured_worse."),
        (BASE + 'better = "up"', "better: found .up.. Allowed: higher, lower."),
        ('metric = "a/b"\nat_most = 1\nbetter = "higher"', "better: found 'higher', which contradicts at_most. Leave"),
        (FILE + "max_worse = 1", "max_worse: the direction of this number is not known. Add better ="),
        (FILE + 'at_most = 1\nfail_if = "shown_worse"', "fail_if: found 'shown_worse'. .*Allowed: measured_worse."),
        ('file = "a.json"\nat_most = 1', "rules.r: needs number, the path of the number in the file"),
        ('file = "/etc/a.json"\nnumber = "b"\nat_most = 1', "file: found '/etc/a.json', allowed is a path in the run"),
        ('file = "../a.json"\nnumber = "b"\nat_most = 1', "file: found .*, allowed is a path in the run directory"),
        ('file = "a.json"\nnumber = "a..b"\nat_most = 1', "number: found 'a..b', allowed is"),
        ('file = "a.json"\nnumber = 3\nat_most = 1', "number: found 3, allowed is"),
    ],
)
def test_each_mistake_in_a_rule_names_line_rule_and_what_is_allowed(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        rule(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no rules. A gate without rules would pass everything: write a table \[rules.NAME\]"),
        ("[rules]", "no rules. A gate without rules"),
        ("rules = 3", "no rules. A gate without rules"),
        ("[rules]\nmax_worse = 3", r"gate.toml:2: rules.max_worse: found 3, allowed is a table \[rules.max_worse\]"),
        ("[rule.a]\nmetric = 'a/b'", r"gate.toml: unknown table or key 'rule'. Did you mean rules\? Write tables"),
        ("[small]\nmetric = 'a/b'", r"unknown table or key 'small'. Did you mean rules.small\? Write tables"),
        ("[rules.a]\n[rules.a]", r"cannot be read as a gate \(.*rules.*twice.*line 2"),
        ("[rules.a\n", r"gate.toml: cannot be read as a gate \(.*line 1"),
    ],
)
def test_file_that_is_no_gate_is_an_error(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        rules(tmp_path, text)


def test_missing_file_and_text_that_is_not_utf8_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read as a gate \(No such file"):
        read_rules(tmp_path / "none.toml")
    (tmp_path / "gate.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"gate.toml: cannot be read as a gate"):
        read_rules(tmp_path / "gate.toml")


def test_rule_with_a_quoted_name_has_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"gate.toml:4: rules.no slice.at_most: found"):
        rules(tmp_path, '\n# a comment\n[rules."no slice"]\nat_most = "x"\nmetric = "a/b"')
