"""`convoy evaluate` of the best step and of a given one; tests of the functions are in tests/api."""

import shutil

import pytest

from engine.cli.main import main
from tests import runs


def test_evaluate_prints_the_results_of_a_step(digits, tmp_path):
    path = shutil.copytree(digits[0], tmp_path / "run")  # an evaluation adds a file to the run
    done = runs.convoy("evaluate", str(path))
    assert f"evaluating {path} at step 3 (best heldout/accuracy, " in done.stderr
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines["step"] == "3"
    assert float(lines["heldout/accuracy"]) == pytest.approx(runs.status(path)["metrics"]["heldout/accuracy"], abs=1e-6)
    assert runs.convoy("evaluate", str(path), "--step=2").stdout.startswith("step: 2\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--follow", "--step=2"], "--follow evaluates every checkpoint. Remove --step."),
        (["run", "--timeout=1 hour"], "--timeout limits how long --follow waits. Add --follow."),
        (["run", "--data.limit=3"], "--data.limit=3: unknown argument of convoy evaluate"),
        (["nowhere"], "RunError: nowhere: is not a run"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(["evaluate", *words]) == 1
    assert text in capsys.readouterr().err
