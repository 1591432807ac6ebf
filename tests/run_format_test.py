"""A run directory of an earlier release can be resumed, evaluated, exported and used to initialize a new run."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.compile import cache
from tests import runs

FIXTURE = Path(__file__).parent / "fixtures/run_format_1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
SAME_MACHINE = EXPECTED["machine"] == cache.key()  # same CPU and jax release: results are bitwise equal
CONTINUE = """
import json, sys
from pathlib import Path
from tests import run_format
run = Path(sys.argv[1])
print(json.dumps(run_format.continued(run)), file=open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """A copy of the run that was resumed to its end, and its facts before and after."""
    path = tmp_path_factory.mktemp("continued")
    shutil.copytree(FIXTURE / "run", path / "run")
    program = [sys.executable, "-c", CONTINUE, path / "run", path / "found.json"]
    done = runs.run(program)
    assert done.returncode == 0, done.stderr
    return path / "run", json.loads((path / "found.json").read_text())


def assert_same(found, expected):
    """Checks that numbers by name are equal: bitwise on the same kind of machine, else within 1e-6."""
    assert found == (expected if SAME_MACHINE else pytest.approx(expected, rel=1e-6, abs=1e-6))


def test_run_of_an_earlier_release_resumes_bitwise(continued):
    run, found = continued
    finished, expected = found["finished"], EXPECTED["finished"]
    assert "resuming from step 7" in (run / "log.txt").read_text()
    assert finished["step"] == expected["step"] == 12
    assert_same(finished["metrics"], expected["metrics"])
    assert finished["digests"].keys() == expected["digests"].keys()
    if SAME_MACHINE:
        assert finished["digests"] == expected["digests"]
    weights, wanted = load_file(run / "weights.safetensors"), load_file(FIXTURE / "finished.safetensors")
    for name, array in wanted.items():
        np.testing.assert_allclose(weights[name], array, rtol=0, atol=1e-6)


@pytest.mark.parametrize("when", ["stopped", "finished"])
def test_run_of_an_earlier_release_evaluates_to_the_same_numbers(continued, when):
    assert_same(continued[1][when]["evaluation"], EXPECTED[when]["evaluation"])


def test_run_of_an_earlier_release_exports_the_same_bytes(continued):
    found, expected = continued[1]["stopped"], EXPECTED["stopped"]
    assert (found["names"], found["export_sha256"]) == (expected["names"], expected["export_sha256"])


def test_run_of_an_earlier_release_initializes_a_new_run(tmp_path):
    old, new = shutil.copytree(FIXTURE / "run", tmp_path / "old"), tmp_path / "new"
    settings = {"task__model": "cnn", "task__width": 4, "init__checkpoint": str(old / "checkpoints/7")}
    frozen = {"train__total": "1 step", "optimizer__learning_rate": 0.0, "evaluations": {}}
    engine.train(runs.config(**settings, **frozen), workdir=new)
    found = json.loads((new / "checkpoints/1/manifest.json").read_text())["arrays"]
    average = {path: x for path, x in EXPECTED["stopped"]["digests"].items() if path.startswith("ema/")}
    assert len(average) == 5
    assert {path: found[path.replace("ema", "params", 1)] for path in average} == average
