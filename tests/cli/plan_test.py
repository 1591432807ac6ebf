"""The arguments of `convoy plan`; tests of plans are in tests/planning."""

import pytest

from engine.cli.main import main


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "convoy plan: no config. Add --config=CONFIG, or --runs DIR"),
        (["--runs", "run", "--config.train.seed=1"], "--runs prints what earlier runs recorded. Remove the"),
        (["--runs", "run", "--compile=2"], "--runs prints what earlier runs recorded. Remove the"),
        (["--runs", "nowhere"], "nowhere: is not a run directory"),
        (["--config=configs.digit"], "Did you mean configs.digits"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(["plan", *words]) == 1
    assert text in capsys.readouterr().err
