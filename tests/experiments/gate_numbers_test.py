"""The numbers that rules of a gate are about: those of a run alone, of its slices, and of files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.base.errors import RunError
from engine.experiments.gate_file import read_rules
from engine.experiments.gate_numbers import file_numbers, limited_numbers
from engine.experiments.variants import Run
from engine.metrics import ConfusionMatrix
from engine.metrics.example_file import to_parquet
from engine.metrics.slices import Examples
from tests.experiments.made import kept, make_run, verdicts

NAN = float("nan")
COUNT = 200
FINE = 'fail_if = "not_shown_fine"\n'


@pytest.fixture
def run(tmp_path) -> Path:
    """A run without metrics of examples."""
    return make_run(tmp_path / "run", metrics={"val/accuracy": 0.9, "val/odd": 1.0})


RATE = 'metric = "val/collision_rate"\nat_most = '


def test_limit_of_a_run_alone_is_judged_by_value_or_interval(tmp_path):
    run = kept(tmp_path / "a", (np.arange(COUNT) % 50 == 0).astype(float))  # 2 %
    assert verdicts(run, RATE + "0.02").verdict == "pass"
    assert verdicts(run, RATE + "0.0199").verdict == "fail"
    assert verdicts(run, RATE + "0.02\n" + FINE).verdict == "fail"  # other examples may have more
    assert verdicts(run, RATE + "0.06\n" + FINE).verdict == "pass"
    assert verdicts(run, RATE + '0.0199\nfail_if = "shown_worse"').verdict == "pass"
    [number] = verdicts(run, RATE + "0.06\n" + FINE).numbers
    assert number.number.interval.low < 0.02 < number.number.interval.high
    assert number.number.examples == COUNT and number.number.base is None


def test_interval_of_a_limit_is_over_groups_if_they_are_named(tmp_path):
    values = np.repeat((np.random.default_rng(0).random(60) < 0.3).astype(float), 10)
    run = kept(tmp_path / "a", values)
    single = verdicts(run, RATE + "1\n" + FINE).numbers[0].number.interval
    path = tmp_path / "gate.toml"
    [grouped] = limited_numbers(read_rules(path)[0], Run.read(run), 1000, "scene")
    assert grouped.interval.high - grouped.interval.low > 2 * (single.high - single.low)
    assert grouped.freedom == 59


def test_slices_of_a_run_alone(tmp_path):
    run = kept(tmp_path / "a", np.zeros(COUNT))
    found = verdicts(run, RATE + '0.02\nslices = "*"\ntoo_few = "skip"')
    assert {each.number.part: str(each.verdict) for each in found.numbers} == {
        "near": "pass", "none": "too few", "rare": "pass",
    }  # fmt: skip
    found = verdicts(run, RATE + '0.02\nslices = "*"\ntoo_few = "skip"\n' + FINE)
    assert {each.number.part: str(each.verdict) for each in found.numbers}["rare"] == "too few"


def test_recorded_numbers_are_judged_where_no_examples_were_kept(tmp_path):
    metrics = {"val/collision_rate": 0.02, "val/night/collision_rate": 0.03, "val/night/examples": 40.0}
    run = make_run(tmp_path / "a", metrics={**metrics, "val/gone/examples": 0.0})
    assert verdicts(run, RATE + "0.02").verdict == "pass"
    found = verdicts(run, RATE + '0.02\nslices = "*"\ntoo_few = "skip"')
    assert {each.number.part: str(each.verdict) for each in found.numbers} == {"gone": "too few", "night": "fail"}
    with pytest.raises(
        RunError, match=r"fail_if = not_shown_fine needs an interval. .*/a kept no metrics of its examples"
    ):
        verdicts(run, RATE + "0.02\n" + FINE)
    with pytest.raises(
        RunError, match=r"min_examples: the number of examples of val/collision_rate is not known. .*/a kept"
    ):
        verdicts(run, RATE + "0.02\nmin_examples = 10")
    assert verdicts(run, RATE + '0.02\nslices = "night"\nmin_examples = 41\ntoo_few = "skip"').verdict == "skipped"


def test_number_that_is_not_finite_fails_a_limit(tmp_path):
    values = np.zeros(COUNT)
    values[3] = NAN
    for option in ("", 'too_few = "skip"\n', FINE):
        result = verdicts(kept(tmp_path / f"a{len(option)}", values), RATE + "0.02\n" + option)
        assert (result.verdict, result.numbers[0].reason) == ("fail", "no finite value")


def test_limit_in_the_wrong_direction_is_an_error_unless_it_is_meant(run):
    with pytest.raises(
        RunError, match=r"val/accuracy is better when it is higher, so at_most would pass bad runs. Write at"
    ):
        verdicts(run, 'metric = "val/accuracy"\nat_most = 0.5')
    assert verdicts(run, 'metric = "val/accuracy"\nat_most = 0.95\nbetter = "lower"').verdict == "pass"
    assert verdicts(run, 'metric = "val/accuracy"\nat_least = 0.9').verdict == "pass"
    assert verdicts(run, 'metric = "val/accuracy"\nat_least = 0.91').verdict == "fail"
    assert verdicts(run, 'metric = "val/odd"\nat_least = 1').verdict == "pass"  # the limit says the direction


def test_direction_is_that_of_the_class_of_the_metric_where_its_examples_were_kept(tmp_path):
    run = kept(tmp_path / "a", np.zeros(COUNT))
    labels: Any = np.arange(40) % 2
    examples = Examples(np.arange(40), {}, {"odd": ConfusionMatrix.of(labels, labels, classes=("car", "dog"))})
    (run / "per_example" / "val" / "10.parquet").write_bytes(to_parquet(examples))
    assert verdicts(run, 'metric = "val/odd/*car*"\nat_least = 0.9\n' + FINE).verdict == "pass"
    with pytest.raises(RunError, match=r"val/odd/accuracy is better when it is higher"):
        verdicts(run, 'metric = "val/odd/accuracy"\nat_most = 1')


# Numbers of files.


def report(run: Path, content: Any) -> Path:
    (run / "export").mkdir(exist_ok=True)
    (run / "export" / "report.json").write_text(json.dumps(content))
    return run


LATENCY = 'file = "export/report.json"\nnumber = "latency.p99_ms"\n'


def test_number_of_a_file_is_judged(run):
    run = report(run, {"latency": {"p99_ms": 30}})
    assert verdicts(run, LATENCY + "at_most = 30").verdict == "pass"
    assert verdicts(run, LATENCY + "at_most = 29.9").verdict == "fail"
    report(run, {"latency": {"p99_ms": NAN}})
    assert verdicts(run, LATENCY + "at_most = 29.9").verdict == "fail"
    report(run, [{"p99.9": 3}])
    assert verdicts(run, 'file = "export/report.json"\nnumber = ["0", "p99.9"]\nat_least = 3').verdict == "pass"


def test_number_of_a_file_is_compared_with_that_of_each_run_of_the_base(tmp_path):
    runs = [report(make_run(tmp_path / str(ms)), {"latency": {"p99_ms": ms}}) for ms in (20.0, 21.0, 22.0)]
    path = tmp_path / "gate.toml"
    path.write_text(f'[rules.r]\n{LATENCY}better = "lower"\nmax_worse_percent = 10\n')
    first, second, judged = map(Run.read, runs)
    found = file_numbers(read_rules(path)[0], judged, [first, second])
    assert [(each.base, each.value, each.higher_is_better) for each in found] == [(20, 22, False), (21, 22, False)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"gate.toml:1: rules.r: .*/export/report.json: cannot be read \(No such file"),
        ({"latency": {"p99ms": 3}}, r"there is no 'p99_ms' in latency. Did you mean p99ms\? It has p99ms."),
        ({}, "there is no 'latency' in the file. It has nothing."),
        ({"latency": 3}, "there is no 'p99_ms' in latency. It has nothing."),
        ({"latency": {"p99_ms": "3"}}, "latency.p99_ms is '3', and no number."),
        ({"latency": {"p99_ms": True}}, "latency.p99_ms is True, and no number."),
        ({"latency": {"p99_ms": [3]}}, "latency.p99_ms is a list, and no number."),
    ],
)
def test_file_without_the_number_is_an_error(run, content, message):
    if content is not None:
        report(run, content)
    with pytest.raises(RunError, match=message):
        verdicts(run, LATENCY + "at_most = 30")
