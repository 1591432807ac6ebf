"""`convoy plot` of the digits run; tests of the charts are in tests/plot."""

import subprocess
import sys

from engine.cli.main import main
from tests import runs
from tests.levels import TOP

PROGRAM = """
import sys
from engine.cli.main import main
assert main(["plot", sys.argv[1]]) == 0
print(sorted({"jax", "matplotlib", "rich"} & set(sys.modules)))
"""


def test_curves_are_printed_without_heavy_libraries(digits):
    words, environment = [sys.executable, "-c", PROGRAM, str(digits[0])], runs.environment(PYTHONPATH=str(TOP))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("loss\n") and "\naccuracy\n" in done.stdout
    assert "heldout " in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_picture_of_two_runs_is_written(digits, tmp_path, capsys):
    run, file = str(digits[0]), tmp_path / "a.png"
    assert main(["plot", run, f"{run}/", "--metric=loss", f"--out={file}"]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote loss to {file}\n"


def test_mistakes_are_one_sentence(digits, capsys):
    assert main(["plot", "nowhere"]) == 1
    assert main(["plot", str(digits[0]), "--metric=acuracy"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "RunError: nowhere: there is no metrics.jsonl. Give the directory of a run."
    assert errors[1].startswith("ConfigError: --metric = acuracy: no run has this metric. Did you mean accuracy")
