"""Parsing of the command line: verbs and their arguments, overrides, and errors for every other word."""

import pytest

from engine.base.errors import ConfigError
from engine.cli.arguments import make_parser, parse, split_overrides


def test_split_overrides_accepts_equals_and_space():
    words = ["train", "--config=x", "--config.train.total=3 steps", "--fresh", "--config.name", "a=b"]
    assert split_overrides(words) == (["train", "--config=x", "--fresh"], ["train.total=3 steps", "name=a=b"])
    with pytest.raises(ConfigError, match=r"^--config\.name: no value\. Write --config\.name=VALUE\.$"):
        split_overrides(["--config.name"])


def test_words_after_two_dashes_are_the_command():
    args = parse(["launch", "local", "--processes=2"], ["--", "train", "--config=x"])
    assert (args.verb, args.processes, args.restarts, args.command) == ("launch", 2, 0, ["train", "--config=x"])
    args = parse(["supervise"], ["--", "train"])
    assert (args.verb, args.processes, args.restarts, args.command) == ("supervise", None, None, ["train"])
    assert parse([]).verb is None


@pytest.mark.parametrize(
    ("words", "after", "sentence"),
    [
        (["superwise"], [], "superwise: unknown command. Did you mean supervise?"),
        (["train", "--config=x", "--fres"], [], "--fres: unknown argument of convoy train. Did you mean --fresh?"),
        (["train", "--config=x"], ["--", "y"], "--: unknown argument of convoy train"),
        (["supervise", "--restart=2"], [], "--restart=2: unknown argument of convoy supervise. Did you mean --r"),
        (["launch", "local", "--processes=2", "--restarts=-1"], [], "--restarts = -1: allowed is a whole number"),
        (["train", "--config=x", "--workdir="], [], "--workdir: found an empty value. Write a value, or leave --workd"),
        (["evaluate", ""], [], "RUN: found an empty value."),
        (["train", "--config=x", "y.py"], [], "y.py: unknown argument of convoy train. Did you mean --config=y.py?"),
        (["train", "--config=x", "--train.seed=1"], [], "--train.seed=1: unknown argument of convoy train. Did you "
         "mean --config.train.seed=1?"),
        (["train", "--config=x", "--lr=1e-3"], [], "--lr=1e-3: unknown argument of convoy train. Did you mean "
         "--config.optimizer.learning_rate=1e-3?"),
        (["train", "--config=x", "--batch-size"], [], "--batch-size: unknown argument of convoy train. Did you mean "
         "--config.train.global_batch_size=VALUE?"),
        (["train", "--config=x", "--epochs=3"], [], "--epochs=3: unknown argument of convoy train. Did you mean "
         '--config.train.total="3 epochs"?'),
        (["train", "--config=x", "--out=3"], [], "--out=3: unknown argument of convoy train. Arguments here"),
        (["launch", "local", "--processes=2", "train"], [], "train: unknown argument of convoy launch local. Write --"),
        (["supervise", "train", "--config=x"], [], "train: unknown argument of convoy supervise. Write -- before the"),
        (["explain", "y.py"], [], "convoy explain: the following arguments are required: --config. For help: convoy "),
        (["train", "y.py"], [], "convoy train: one of the arguments --config --cooldown is required. For help: convoy"),
        (["evaluate"], [], "convoy evaluate: the following arguments are required: run"),
    ],
)  # fmt: skip
def test_unknown_word_is_a_config_error(words, after, sentence):
    with pytest.raises(ConfigError) as error:
        parse(words, after)
    assert str(error.value).startswith(sentence)


def test_config_without_its_flag_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"--cooldown is required\..*Did you mean --config=y.py\?$"):
        parse(["train", "--workdir", "x", "y.py"])
    with pytest.raises(ConfigError, match=r"required: --config\..*Did you mean --config=y.py\?$"):
        parse(["explain", "y.py"])


def test_help_lists_every_verb():
    top, verbs = make_parser()
    for name in verbs:
        assert f"\n    {name}" in top.format_help()
    assert set(verbs) >= {"train", "evaluate", "config", "explain", "checkpoints", "data", "launch", "supervise"}
