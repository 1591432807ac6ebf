"""The benchmark of several datasets and of memory: a tiny run, and the table of its results."""

import sys

import pytest

from benchmarks import driving_data
from convoy_zoo.configs.half_labelled import CLASSES
from tests import runs

TINY = ["train.total=1 steps", "task.width=4"]
TINY += [f"data.sources.{name}.count=2" for name in CLASSES]
TINY += [f"evaluations.heldout_{name}.data.sources.{name}.count=2" for name in CLASSES]


@pytest.mark.multiprocess
def test_all_variants_of_a_workload_are_trained(tmp_path):
    words = [sys.executable, "-m", "benchmarks.driving_data", "--only=joint", "--seeds=0", f"--workdir={tmp_path}"]
    environment = runs.environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # most of the time is compilation
    found = runs.run([*words, *TINY], env=environment)
    assert found.returncode == 0, found.stderr
    first, *others = found.stdout.splitlines()[-3:]
    assert first.startswith("both: heldout_vehicle/iou ") and "heldout_lane/iou " in first
    assert [line.split()[1] for line in others] == [*driving_data.SHOWN["joint"]]
    assert len(list(tmp_path.glob("joint/*/seed0/metrics.jsonl"))) == 3


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
