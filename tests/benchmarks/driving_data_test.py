"""The benchmark of several datasets and of memory: a tiny run, and the table of its results."""

import subprocess
import sys

import pytest

from benchmarks import driving_data
from tests import runs

TINY = ("data.count=2", "train.total=1 steps", "evaluations.heldout.data.count=1", "task.width=2", "task.memory=2")


@pytest.mark.multiprocess
def test_both_variants_of_a_workload_are_trained(tmp_path):
    words = [sys.executable, "-m", "benchmarks.driving_data", "--only=memory", "--seeds=0", f"--workdir={tmp_path}"]
    environment = runs.environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # most of the time is compilation
    found = subprocess.run([*words, *TINY], env=environment, capture_output=True, text=True, check=True)
    first, *others = found.stdout.splitlines()[-5:]
    assert first.startswith("memory: heldout/nds ") and "heldout/hidden_recall " in first
    assert [line.split()[2] for line in others] == [*driving_data.SHOWN["memory"]]
    assert len(list(tmp_path.glob("memory/*/seed0/metrics.jsonl"))) == 2


def test_differences_are_those_of_each_seed():
    results = {"both": {"a": [1.0, 2.0, 3.0], "b": [0.0, 0.0, 0.0]}, "alone": {"a": [0.5, 1.0, 2.5]}}
    first, second = driving_data.table(results, ["a", "b"]).splitlines()
    assert first == "both: a 2.0000 (1.0000, 2.0000, 3.0000), b 0.0000 (0.0000, 0.0000, 0.0000)"
    assert second.endswith("both differs by +0.6667 (-0.0504 to +1.3838)")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds=1,1"], "a seed occurs twice"),
        (["--seeds=a"], "allowed are whole numbers"),
        (["train.totl=1"], "Did you mean train.total"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, text, capfd):
    with pytest.raises(SystemExit):
        driving_data.main(["--only=memory", *arguments])
    assert text in capfd.readouterr().err
