"""measure.py makes calls of the samples, and measures them without the engine."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.bundles.standalone import measure
from tests.bundles import handmade

SOURCE = Path(measure.__file__)


@pytest.fixture
def calls_of(monkeypatch):
    """Returns the class Calls, whose module imports check.py, as it lies next to it in a bundle."""
    monkeypatch.syspath_prepend(SOURCE.parent)
    return measure.Calls


def test_imports_are_those_of_a_machine_without_the_engine():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {str(x.module if isinstance(x, ast.ImportFrom) else x.names[0].name).split(".")[0] for x in imports}
    assert imported - set(sys.stdlib_module_names) == {"check", "jax", "numpy"}


def test_calls_take_one_row_after_the_other(calls_of):
    entry = {"inputs": {"x": {"shape": ["n", 2]}, "table": {"shape": [3]}}, "state": []}
    x = np.arange(6).reshape(3, 2)
    calls, seen = calls_of(entry, {"inputs/x": x, "inputs/table": np.ones(3)}, 2), []
    assert len(calls.run(lambda inputs: seen.append(inputs), 4)) == 4
    assert [given["x"].tolist() for given in seen] == [x[rows].tolist() for rows in ([0, 1], [1, 2], [2, 0], [0, 1])]
    assert all(given["table"].shape == (3,) for given in seen)


def test_calls_pass_the_state_on(calls_of):
    entry = {"inputs": {"x": {"shape": ["batch"]}, "state/sum": {"shape": ["batch"]}}, "state": ["state/sum"]}
    samples = {"inputs/x": np.array([[1.0], [2.0]]), "inputs/state/sum": np.array([5.0])}  # two frames of one row
    calls, seen = calls_of(entry, samples, 2), []

    def call(inputs):
        seen.append({name: x.tolist() for name, x in inputs.items()})
        return {"state/sum": inputs["state/sum"] + inputs["x"]}

    calls.run(call, 3)
    assert seen == [
        {"x": [1.0, 1.0], "state/sum": [5.0, 5.0]},
        {"x": [2.0, 2.0], "state/sum": [6.0, 6.0]},
        {"x": [1.0, 1.0], "state/sum": [8.0, 8.0]},
    ]


def test_percentiles_are_measured_values():
    ordered = list(range(1, 1001))
    assert [measure.percentile(ordered, p) for p in measure.PERCENTILES.values()] == [500, 900, 990, 1000]
    assert [measure.percentile([3, 5], p) for p in measure.PERCENTILES.values()] == [3, 5, 5, 5]


def test_time_of_a_part_leaves_out_what_was_interrupted():
    usual = [1e-6] * (2 * measure.PROFILED - 2)  # twice in each call
    assert measure.seconds_of_call([*usual, 5.0, 7.0]) == pytest.approx(2e-6)


@pytest.mark.multiprocess
def test_program_in_a_bundle_prints_a_line(tmp_path):
    bundle = handmade.write(tmp_path / "handmade", holds_weights=True)

    def run(*words):
        done = subprocess.run([sys.executable, bundle / "measure.py", *words], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("predict", "stablehlo", "--calls=3", "--warmup=0", f"--json={tmp_path}/found.json")
    assert code == 0, err
    assert out.startswith("predict stablehlo (jax ") and ", batch 1: p50 " in out and out.count("\n") == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["calls"] == 3 and not found["has_weights"]
    code, out, err = run("embed", "stablehlo", "--cores=0")
    assert (code, out, err) == (1, "", "measure.py: embed stablehlo: no such entry point. Found: predict.\n")


@pytest.mark.multiprocess
def test_program_of_another_batch_is_refused(tmp_path):
    bundle = handmade.write(tmp_path / "handmade", onnx=False)
    content = json.loads((bundle / "bundle.json").read_text())
    content["entries"]["predict"]["inputs"]["image"]["shape"] = [8, handmade.IN]
    handmade.write_manifest(bundle, content)
    words = [sys.executable, bundle / "measure.py", "predict"]
    done = subprocess.run([*words, "stablehlo", "--batch=2"], capture_output=True, text=True)
    assert done.stderr == "measure.py: predict stablehlo: --batch=2: the program takes only batches of 8.\n"
    done = subprocess.run([*words, "onnx"], capture_output=True, text=True)
    assert done.stderr == "measure.py: predict onnx: no such program. Found: stablehlo.\n"
