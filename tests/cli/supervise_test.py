"""`convoy supervise` checks its command before it starts a process; tests of restarts are in tests/launch."""

import pytest

from engine.cli.main import main

DIGITS = "--config=configs.digits"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "convoy supervise: found nothing after --. Write train: convoy supervise ... -- train ..."),
        (["--", "evaluate", "runs/x"], "convoy supervise: found evaluate after --. Write train"),
        (["--restarts=-1", "--", "train"], "--restarts = -1: allowed is a whole number from 0"),
        (["--config.train.seed=1", "--", "train", DIGITS], "--config.train.seed=1: belongs to the command. Write it"),
        (["--", "train", DIGITS, "--fast-dev-run"], "--fast-dev-run: cannot be combined with restarts"),
        (["--", "train", DIGITS, "--fresch"], "--fresch: unknown argument of convoy train. Did you mean --fresh?"),
        (["--", "train", "--config=configs.digit"], "Did you mean configs.digits"),
        (["--", "train", DIGITS, "--config.train.totl=3"], "ConfigError: train.totl: unknown field"),
        (["--processes=0", "--", "train", DIGITS], "--processes = 0: allowed is a whole number from 1"),
    ],
)
def test_wrong_command_is_one_sentence(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["supervise", *words]) == 1
    assert text in capsys.readouterr().err
