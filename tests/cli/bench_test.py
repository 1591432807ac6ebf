"""`convoy bench` prints what the programs of a bundle cost; tests of the measurements are in tests/bundles."""

import json
import os

import pytest

from engine.cli import bench
from engine.cli.main import main
from tests.bundles import handmade

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write(tmp_path_factory.mktemp("bundles") / "handmade", onnx=False)


def test_results_are_printed_and_written_and_a_limit_decides_the_exit_code(bundle, tmp_path, capsys):
    core, file = min(os.sched_getaffinity(0)), tmp_path / "found.json"
    limits = ["--limit=predict:p99:100s", "--limit=predict:p50:0.01us"]
    words = [str(bundle), "--calls=5", "--warmup=1", "--layers=1", f"--cores={core}", f"--json={file}"]
    assert main(["bench", *words, *limits]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"5 calls on core {core}" and lines[2].startswith("predict  stablehlo  jax ")
    assert "predict stablehlo: the layers of a call" in printed.out and "  others" not in printed.out.split("head")[0]
    [sentence] = printed.err.splitlines()
    assert sentence.startswith("predict stablehlo: p50 is ")
    assert sentence.endswith("above --limit=predict:p50:0.01us")
    [found] = json.loads(file.read_text())
    assert found["entry"] == "predict" and found["cores"] == [core] and found["seconds"]["p99"] > 0


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--calls=0", "--calls=0: allowed is a whole number from 1 to 1,000,000."),
        ("--batch=0", "--batch=0: allowed is a whole number from 1"),
        ("--cores=0;1", "--cores=0;1: found '0;1'. Write numbers of cores: 0, or 0,2-3."),
        ("--cores=5000", "--cores: core 5000 is not usable here."),
        ("--limit=p99:2ms", "--limit=p99:2ms: write ENTRY:NAME:VALUE"),
        ("--json=/nowhere/x.json", "--json=/nowhere/x.json: no file can be written there. Name a file in a folder"),
        ("--entry=predct", "no entry point 'predct'. Did you mean predict?"),
        ("--config.x=1", "convoy bench reads the run's own config and takes no overrides"),
    ],
)
def test_wrong_flag_is_one_sentence(flag, sentence, bundle, capsys):
    assert main(["bench", str(bundle), flag]) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_what_is_no_bundle_is_one_sentence(tmp_path, capsys):
    assert main(["bench", str(tmp_path)]) == 1
    assert "is no bundle" in capsys.readouterr().err


def test_list_of_cores_has_ranges():
    assert bench.cores_of("") == [] and bench.cores_of("4") == [4] and bench.cores_of("0,2-4") == [0, 2, 3, 4]
