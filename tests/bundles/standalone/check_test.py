"""check.py in a bundle finds each damage, and runs the programs without the engine."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.bundles.standalone import check
from tests.bundles import handmade

HAS_ONNX = find_spec("onnxruntime") is not None
SOURCE = Path(check.__file__)
SAMPLES = handmade.SAMPLES


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("bundles") / "handmade")


@pytest.fixture
def bundle(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "handmade"))


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "bundle.json").read_text())


def zipped(bundle: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(bundle.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            file.write(path, prefix + path.relative_to(bundle).as_posix())
    return bundle.with_suffix(".zip")


def test_each_program_agrees_with_the_samples(bundle, capsys):
    assert check.main([str(bundle)]) == 0
    printed = capsys.readouterr()
    first, stablehlo, onnx = printed.out.splitlines()
    assert first == "6 files have the hashes of bundle.json" and printed.err == ""
    assert stablehlo.startswith("predict stablehlo (jax ") and "all rows and one row agree" in stablehlo
    if HAS_ONNX:
        assert onnx.startswith("predict onnx (onnxruntime ") and "all rows and one row agree" in onnx
    else:
        assert onnx == "predict onnx: not run: onnxruntime is not installed"


@pytest.mark.multiprocess
def test_file_in_the_bundle_runs_from_any_folder(bundle, tmp_path):
    (bundle / "__pycache__").mkdir()  # as after an import of load.py
    (bundle / "__pycache__/load.pyc").write_bytes(b"")
    (bundle / "bundle.json.minisig").write_text("a signature")
    done = subprocess.run([sys.executable, bundle / "check.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "predict stablehlo (jax " in done.stdout


@pytest.mark.parametrize("prefix", ["", "handmade/"])
def test_zip_file_is_checked_like_a_folder(bundle, prefix, capsys):
    assert check.main([str(zipped(bundle, prefix))]) == 0
    assert "all rows and one row agree" in capsys.readouterr().out


def test_imports_are_those_of_a_machine_without_the_engine():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    imported = {
        str(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"ml_dtypes", "numpy"}


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit(bundle: Path, **changes: object) -> None:
    (bundle / "bundle.json").write_text(json.dumps(manifest(bundle) | changes))


DAMAGES = {
    "a changed byte": (lambda b: flip(b / "weights.safetensors"), "weights.safetensors was changed: its sha256"),
    "a cut file": (lambda b: cut(b / "predict.onnx"), "predict.onnx has 231 bytes instead of 463"),
    "a missing file": (lambda b: (b / "predict.stablehlo").unlink(), "predict.stablehlo is missing"),
    "a further file": (lambda b: (b / "samples/x").touch(), "samples/x is not listed in bundle.json"),
    "a newer format": (lambda b: edit(b, format=2), "has format 2; this program reads formats up to 1"),
    "a cut manifest": (lambda b: cut(b / "bundle.json"), "is no bundle (JSONDecodeError"),
    "no manifest": (lambda b: (b / "bundle.json").unlink(), "bundle.json cannot be read"),
    "another manifest": (lambda b: (b / "bundle.json").write_text("[1]"), "is no bundle (TypeError"),
    "no files": (lambda b: edit(b, files=3), "bundle.json: was changed or is damaged (TypeError"),
    "no entries": (lambda b: edit(b, entries={"predict": {}}), "bundle.json: was changed or is damaged (KeyError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundle_ends_with_one_sentence(damage, bundle, capsys):
    do, sentence = DAMAGES[damage]
    do(bundle)
    assert check.main([str(bundle)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("check.py: ") and sentence in printed.err and printed.err.count("\n") == 1
    assert "agree" not in printed.out


@pytest.mark.parametrize("at", [0.02, 0.5])
def test_damaged_zip_file_ends_with_one_sentence(at, bundle, capsys):
    file = zipped(bundle)
    flip(file, int(at * file.stat().st_size))
    assert check.main([str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    cut(file)
    assert check.main([str(file)]) == 1
    assert "is no bundle (BadZipFile" in capsys.readouterr().err


def test_path_that_does_not_exist_ends_with_one_sentence(tmp_path, capsys):
    assert check.main([str(tmp_path / "nowhere")]) == 1
    assert "is no bundle (FileNotFoundError" in capsys.readouterr().err


def test_other_numbers_than_the_samples_are_an_error(bundle, capsys):
    arrays = load_file(bundle / SAMPLES)
    arrays["outputs/score"] = arrays["outputs/score"] + np.float32(3e-5)
    save_file(arrays, bundle / SAMPLES)
    handmade.write_manifest(bundle, manifest(bundle))
    assert check.main([str(bundle)]) == 1
    printed = capsys.readouterr()
    assert "score of all rows differs by 3e-05 > 1e-05" in printed.out
    assert f"check.py: {1 + HAS_ONNX} of 2 programs do not agree with the samples.\n" == printed.err


def test_program_that_fails_is_an_error(bundle, capsys):
    (bundle / "predict.stablehlo").write_bytes(b"something else")
    handmade.write_manifest(bundle, manifest(bundle))
    assert check.main([str(bundle)]) == 1
    printed = capsys.readouterr()
    assert "predict stablehlo: fails: " in printed.out and "1 of 2 programs" in printed.err


def test_missing_libraries_are_named_and_nothing_run_is_an_error(bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert check.main([str(bundle)]) == 0
    assert "predict onnx: not run: onnxruntime is not installed" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert check.main([str(bundle)]) == 1
    printed = capsys.readouterr()
    assert "predict stablehlo: not run: flatbuffers is not installed" in printed.out
    assert printed.err == "check.py: no program ran. Install jax with flatbuffers, or onnxruntime.\n"


def test_program_that_holds_its_weights_agrees(tmp_path, capsys):
    assert check.main([str(handmade.write(tmp_path / "inside", onnx=False, holds_weights=True))]) == 0
    assert "predict stablehlo (jax " in capsys.readouterr().out


def test_program_for_other_devices_is_not_run(bundle, capsys):
    content = manifest(bundle)
    content["entries"]["predict"]["programs"] = {
        "stablehlo": content["entries"]["predict"]["programs"]["stablehlo"] | {"platforms": ["tpu"]}
    }
    handmade.write_manifest(bundle, content)
    assert check.main([str(bundle)]) == 1
    assert "predict stablehlo: not run: it runs on tpu, and jax finds cpu here" in capsys.readouterr().out


def test_model_with_memory_agrees_frame_by_frame(tmp_path, capsys):
    assert check.main([str(handmade.write_with_memory(tmp_path / "memory"))]) == 0
    assert capsys.readouterr().out.count("all frames agree, largest difference 0") == 1 + HAS_ONNX


def test_state_is_passed_from_frame_to_frame():
    entry = {"inputs": {"x": {}, "state/sum": {}}, "outputs": {"state/sum": {}, "twice": {}}, "state": ["state/sum"]}
    x = np.arange(6, dtype=np.float32).reshape(3, 2)  # [frames, rows]

    def step(inputs):
        total = inputs["state/sum"] + inputs["x"]
        return {"state/sum": total, "twice": 2 * total}

    samples = {"inputs/x": x, "inputs/state/sum": np.ones(2, np.float32)}
    samples |= {"outputs/state/sum": 1 + x.cumsum(0), "outputs/twice": 2 + 2 * x.cumsum(0)}
    [(text, outputs, expected)] = check.cases(step, entry, samples)
    assert text == "all frames"
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values)


def test_one_row_of_an_output_that_compares_rows_is_checked():
    entry = {
        "inputs": {"x": {"shape": ["batch", 2]}},
        "outputs": {"products": {"shape": ["batch", "batch"]}, "mean": {"shape": [2]}},
        "state": [],
    }
    x = np.arange(6, dtype=np.float32).reshape(3, 2)

    def compare(inputs):
        return {"products": inputs["x"] @ inputs["x"].T, "mean": inputs["x"].mean(0)}

    samples = {"inputs/x": x} | {f"outputs/{name}": y for name, y in compare({"x": x}).items()}
    _, (text, outputs, expected) = check.cases(compare, entry, samples)
    assert text == "one row" and list(expected) == ["products"]
    np.testing.assert_array_equal(outputs["products"], expected["products"])


def test_difference_is_relative_and_exact_for_integers():
    def of(found, expected):
        return check.difference(np.array(found), np.array(expected))

    assert of([200.0, 1.0], [100.0, 1.0]) == 1.0  # 100 of 100
    assert of([0.5, 0.0], [0.25, 0.0]) == 0.25  # small values count as they are
    assert of([np.nan, np.inf, 1.0], [np.nan, np.inf, 1.5]) == pytest.approx(1 / 3)
    assert of([np.nan], [1.0]) == of([np.inf], [1.0]) == of([1, 2], [1, 3]) == np.inf
    assert of([1, 2], [1, 2]) == of([True], [True]) == 0
    with pytest.raises(TypeError, match=r"float64\[1\] instead of int64\[1\]"):
        of([1.0], [1])
