"""Commands that read a run check their arguments first; tests of each function are with the function."""

import pytest

from engine.base.errors import ConfigError
from engine.cli import commands
from engine.cli.arguments import parse
from engine.cli.main import main


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["evaluate", "run", "--follow", "--step=2"], "--follow evaluates every checkpoint. Remove --step."),
        (["predict", "run", "--out=p.npz", "--batch-size=0"], "--batch-size = 0: allowed is a whole number from 1."),
        (["predict", "run"], "the following arguments are required: --out"),
        (["predict", "run", "--out=p.npz", "--data.limit"], "--data.limit: no value. Write --data.limit=VALUE."),
        (["evaluate", "run", "--data.limit=3"], "--data.limit=3: unknown argument of convoy evaluate"),
        (["checkpoints", "run", "--config.train.seed=1"], "convoy checkpoints reads the run's own config"),
        (["plan"], "convoy plan: no config. Add --config=CONFIG, or --runs DIR"),
        (["plan", "--runs", "run", "--config.train.seed=1"], "--runs prints what earlier runs recorded. Remove the"),
        (["plan", "--runs", "nowhere"], "nowhere: is not a run directory"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(words) == 1
    assert text in capsys.readouterr().err


def test_single_process_joins_silently(capsys):
    commands.join(parse(["evaluate", "run"]))
    assert capsys.readouterr() == ("", "")


def test_no_overrides_names_the_command():
    with pytest.raises(ConfigError, match="convoy goodput reads the run's own config and takes no overrides"):
        commands.no_overrides(["a=1"], "goodput")
    commands.no_overrides([], "goodput")
