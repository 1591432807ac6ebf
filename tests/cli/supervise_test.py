"""`convoy supervise` checks its command before it starts a process; tests of restarts are in tests/launch."""

import pytest

from engine.cli.arguments import parse
from engine.cli.main import main
from engine.cli.supervise import run_directory

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


@pytest.mark.parametrize(
    ("words", "directory"),
    [
        ("--cooldown=runs/a", "runs/a-cooldown"),
        ("--cooldown=runs/a@7", "runs/a-cooldown-7"),
        ("--cooldown=runs/a@7 --workdir=runs/b", "runs/b"),
        (DIGITS, "runs/digits"),
    ],
)
def test_supervisor_knows_the_directory_of_the_run(words, directory):
    train, overrides = parse(["supervise"], ["--", "train", *words.split()]).parse_command()
    assert str(run_directory(train, overrides)) == directory


@pytest.mark.parametrize("line", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_config_that_ends_its_process_is_an_error(line, capsys, tmp_path):
    (tmp_path / "ends.py").write_text(f"import os\n\ndef get_config():\n    {line}\n")
    assert main(["supervise", "--", "train", f"--config={tmp_path / 'ends.py'}"]) == 1
    assert "ends.py: the process that loads this config was ended by it" in capsys.readouterr().err
