"""Runs of version 0.2.0 resume, evaluate, predict and export the same, named by dotted paths or made of objects."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import run_format, run_format_2, runs

FIXTURE = Path(__file__).parent / "fixtures/run_format_2"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
SAME_MACHINE = EXPECTED["machine"] == run_format.machine()  # results are bitwise equal
CONTINUE = """
import json, sys
from pathlib import Path
from tests import run_format_2
print(json.dumps(run_format_2.continued(Path(sys.argv[1]))), file=open(sys.argv[2], "w"))
"""
each_run = pytest.mark.parametrize("name", run_format_2.RUNS)
each_time = pytest.mark.parametrize("when", ["stopped", "finished"])


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """Copies of the runs that were resumed to their ends, and their facts before and after."""
    path = tmp_path_factory.mktemp("continued")
    shutil.copytree(FIXTURE, path / "runs")
    program = [sys.executable, "-c", CONTINUE, path / "runs", path / "found.json"]
    done = runs.run(program)
    assert done.returncode == 0, done.stderr
    return path / "runs", json.loads((path / "found.json").read_text())


def assert_same(found, expected):
    """Checks that JSON values are equal: bitwise on the same kind of machine, else numbers within 1e-6."""
    if SAME_MACHINE:
        assert found == expected
    leaves = [dict(jax.tree.leaves_with_path(tree)) for tree in (found, expected)]
    texts = [{path: x for path, x in part.items() if isinstance(x, str)} for part in leaves]
    numbers = [{path: x for path, x in part.items() if not isinstance(x, str)} for part in leaves]
    assert texts[0] == texts[1]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-6)


def of_version(found, expected):
    """Returns the values that version 0.2 had, too: later versions add results, such as the loss of evaluations."""
    if isinstance(expected, dict):
        return {name: of_version(found[name], value) for name, value in expected.items()}
    if isinstance(expected, list) and len(found) == len(expected):
        return [of_version(*pair) for pair in zip(found, expected, strict=True)]
    return found


@each_run
def test_run_of_version_0_2_resumes_bitwise(continued, name):
    folder, found = continued
    finished, expected = found[name]["finished"], EXPECTED[name]["finished"]
    assert "resuming from step 7" in (folder / name / "log.txt").read_text()
    assert finished["step"] == expected["step"] == run_format_2.TOTAL
    assert finished["digests"].keys() == expected["digests"].keys()
    if SAME_MACHINE:
        assert finished["digests"] == expected["digests"]
    weights, wanted = (
        load_file(file) for file in (folder / name / "weights.safetensors", FIXTURE / f"{name}.safetensors")
    )
    assert weights.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_allclose(weights[path], array, rtol=0, atol=1e-6)


@each_run
def test_run_of_version_0_2_continues_its_logs_and_its_choice_of_checkpoints(continued, name):
    finished, expected = continued[1][name]["finished"], EXPECTED[name]["finished"]
    assert finished["ledger"] == expected["ledger"] and len(expected["ledger"]) == run_format_2.TOTAL
    for part in ("rows", "results"):  # rows: the loss since step 4, also of the steps before the stop
        assert_same(of_version(finished[part], expected[part]), expected[part])
    assert finished["position"]["next_example"] == expected["position"]["next_example"]


def test_stream_of_version_0_2_is_opened_at_the_saved_marks(continued):
    facts = continued[1]["paths"]
    marks = facts["stopped"]["position"]["streams"]
    assert len(marks) == run_format_2.SHARDS and all(position for _, position in marks.values())
    for shard, (_, position) in marks.items():
        assert [int(shard), position] in facts["finished"]["opened"]


@each_run
@each_time
def test_run_of_version_0_2_evaluates_to_the_same_results(continued, name, when):
    found, expected = continued[1][name][when]["evaluation"], EXPECTED[name][when]["evaluation"]
    assert_same(of_version(found, expected), expected)


@each_run
@each_time
def test_run_of_version_0_2_predicts_the_same(continued, name, when):
    found, expected = continued[1][name][when]["predictions"], EXPECTED[name][when]["predictions"]
    assert_same(of_version(found, expected), expected)  # readers of version 0.2 find each of its columns


@each_run
def test_run_of_version_0_2_exports_the_same_bytes(continued, name):
    found, expected = continued[1][name]["stopped"], EXPECTED[name]["stopped"]
    assert (found["names"], found["export_sha256"]) == (expected["names"], expected["export_sha256"])
