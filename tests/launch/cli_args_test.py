"""Arguments of launchers: names, pairs, secrets and quoting; and a scheduler command that is missing or fails."""

import shlex

import pytest

from engine.base.errors import ConfigError
from engine.launch import cli_args
from tests.launch.fakes import fake_command, path_with


@pytest.mark.parametrize("text", ["a", "convoy", "run-7"])
def test_valid_label_is_returned(text):
    assert cli_args.check_label("--name", text) == text


@pytest.mark.parametrize("text", ["", "A", "7a", "a_b", "a-", "a.b", "a" * 64, "a\n"])
def test_invalid_label_is_an_error(text):
    with pytest.raises(ConfigError, match=r"--name = .*: allowed are lower-case letters, digits and -"):
        cli_args.check_label("--name", text)


def test_pairs_parses_name_and_value():
    assert cli_args.parse_pairs("--env", ["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(ConfigError, match="--env = 'A': allowed is NAME=VALUE"):
        cli_args.parse_pairs("--env", ["A"])


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "TOKEN", "hf_token", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_secret_in_env_is_an_error_that_hides_the_value(name):
    with pytest.raises(ConfigError, match=f"--env {name}: is a secret, .* Elsewhere.$") as error:
        cli_args.parse_variables([f"{name}=hunter2"], "Elsewhere.")
    assert "hunter2" not in str(error.value)


def test_ordinary_variables_are_accepted():
    assert cli_args.parse_variables(["XLA_FLAGS=--a --b", "MONKEY=1", "TOKENIZERS=2"], "") == {
        "XLA_FLAGS": "--a --b", "MONKEY": "1", "TOKENIZERS": "2",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--env 7A: allowed are letters"):
        cli_args.parse_variables(["7A=1"], "")


def test_long_command_is_wrapped_and_parses_to_the_same_words():
    short = cli_args.format_command(["a", "--b"], ["c d"])
    assert short == "a --b 'c d'"
    words = ["program", "verb", f"--{'x' * 60}=it's $HOME", "--flag"], ["inner", "train", f"--config={'y' * 60}"]
    text = cli_args.format_command(*words)
    assert [line.split()[0] for line in text.splitlines()] == [
        "program",
        "'--" + "x" * 60 + "=it'\"'\"'s",
        "--flag",
        "inner",
        f"--config={'y' * 60}",
    ]
    assert shlex.split(text.replace("\\\n", "")) == [word for group in words for word in group]


def test_missing_or_failing_scheduler_command_is_a_launch_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", path_with(tmp_path))
    with pytest.raises(cli_args.LaunchError, match="no-such-scheduler: not installed on this machine"):
        cli_args.run_command(["no-such-scheduler", "x"])
    fake_command(tmp_path, "scheduler", "exit $1")
    cli_args.run_command(["scheduler", "0"])
    with pytest.raises(cli_args.LaunchError, match=r"^scheduler 5 failed with exit code 5; its output is above"):
        cli_args.run_command(["scheduler", "5"])
