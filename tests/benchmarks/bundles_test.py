"""The table of bundles: a tiny run, and its cells."""

import dataclasses
import re
import sys

import pytest

from benchmarks import bundles
from benchmarks.bundle_workloads import WORKLOADS
from engine.config import load
from tests import runs


@pytest.mark.multiprocess
def test_table_of_a_workload_has_parity_size_and_latency():
    words = [sys.executable, "-m", "benchmarks.bundles", "--tiny", "--markdown"]
    found = runs.run(words, env=runs.environment(**runs.COMPILING))
    assert found.returncode == 0, found.stderr
    head, rule, row = found.stdout.splitlines()[-3:]
    assert head == "| workload | format | parity | size | p50 | p99 | metric | int8 |" and rule.count("---") == 8
    workload, kind, parity, size, *times, metric, int8 = [cell.strip() for cell in row.strip("|").split("|")]
    assert (workload, kind, metric, int8) == ("MLP, digits", "StableHLO", "", "")
    assert 0 <= float(parity) <= 1e-5
    assert 100 < float(size.removesuffix(" KiB")) < 200  # 26,122 parameters in float32, and the program
    assert all(re.fullmatch(r"[\d.]+ (us|ms|s)", text) for text in times)


def test_cells_of_int8_hold_the_metric_before_and_after():
    cells = bundles.Cells(2e-7, 2048, {"p50": 1e-3, "p99": 0.0125}, ("accuracy", 0.98, 0.975, (-0.01, 0.0)))
    assert cells.texts() == ["2.0e-07", "2.0 KiB", "1.00 ms", "12.5 ms", "accuracy", "0.98 -> 0.975 (-0.01 to +0)"]


def test_missing_data_and_formats_are_named_below_the_table(monkeypatch, capsys):
    digits = dataclasses.replace(WORKLOADS["mlp"], overrides=["data.split=none"])
    monkeypatch.setitem(bundles.WORKLOADS, "mlp", digits)
    assert bundles.main(["--tiny"]) == 0
    *_, row, empty, note = capsys.readouterr().out.splitlines()
    assert row.split() == ["MLP,", "digits", "StableHLO", "no"] and not empty
    assert note.startswith("MLP, digits, StableHLO: ") and "none" in note


@pytest.mark.parametrize("name", WORKLOADS)
def test_settings_of_each_workload_fit_its_config(name):
    workload = WORKLOADS[name]
    config = load(workload.config, workload.changes(steps=3))
    assert str(config.train.total) == "3 steps"
    assert config.evaluations[workload.evaluation].data.limit == workload.examples


@pytest.mark.parametrize("flag", ["--only=mlps", "--formats=tflite"])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        bundles.main([flag])
    assert "is unknown. Allowed: " in capsys.readouterr().err
