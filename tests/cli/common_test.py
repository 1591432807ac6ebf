"""What several verbs share: the parser, joining, and the command after `--`."""

import argparse
import gc
import subprocess
import sys

import pytest

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cli.arguments import make_parser, parse

ATTEMPT = """
import os, sys
from pathlib import Path
from engine.run import lease, status
run = Path(sys.argv[1])
lease.acquire(run / "lease")
status.write(run / "status.json", status.Status(state="training", step=7))
os._exit(0)
"""


def test_parse_errors_are_one_sentence_and_flags_cannot_be_abbreviated():
    parser = common.Parser(prog="convoy test")
    common.add_config_flag(parser)
    with pytest.raises(ConfigError, match=r"^convoy test: .* required: --config\. For help: convoy test --help$"):
        parser.parse_args(["--conf=x"])


def test_help_has_80_columns_also_where_a_text_is_wider(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    top, verbs = make_parser(None)
    texts = [parser.format_help() for parser in (top, *verbs.values())]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    assert "  convoy doctor                         print what this machine provides\n" in texts[0]
    assert f"-- train --config=configs.digits\n{' ' * 40}in several processes\n" in texts[0]
    assert common.narrow("a\n  b  c\n\nd") == "a\n  b  c\n\nd"


def test_single_process_joins_silently(capsys):
    common.join(parse(["evaluate", "run"]))
    assert capsys.readouterr() == ("", "")


def test_refused_overrides_name_the_verb():
    with pytest.raises(ConfigError, match="convoy goodput reads the run's own config and takes no overrides"):
        common.refuse_overrides(["a=1"], "goodput")
    common.refuse_overrides([], "goodput")


def test_config_is_loaded_with_its_overrides():
    assert common.load_config("configs.digits", ["train.seed=7"]).train.seed == 7


def test_garbage_collection_is_paused_only_during_an_import(monkeypatch):
    monkeypatch.delitem(sys.modules, "engine.api.train", raising=False)
    with common.fast_import():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


def test_attempt_that_ended_without_a_verdict_is_reported(tmp_path, capsys):
    subprocess.run([sys.executable, "-c", ATTEMPT, str(tmp_path)], check=True, timeout=180)
    common.warn_of_missing_end(str(tmp_path))
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"{tmp_path}: attempt 1 (process ")
    assert "ended without a verdict after step 7" in printed.err
    (tmp_path / "status.json").unlink()
    common.warn_of_missing_end(str(tmp_path))  # the verb reports that this is not a run
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "expected", "sentence"),
    [
        (["train", "--fresh"], "train", None),
        (["evaluate", "runs/x"], "a verb", None),
        (["evaluate", "runs/x"], "train", "convoy x: found evaluate after --. Write train: convoy x ... -- train ..."),
        ([], "a command", "convoy x: found nothing after --. Write a command: convoy x ... -- train ..."),
        (["launch"], "a command", "convoy x: found launch after --. Write a command: convoy x ... -- train ..."),
    ],
)
def test_command_words_start_the_expected_verb(command, expected, sentence):
    args = argparse.Namespace(command=command)
    if sentence is None:
        words = common.command_words(args, [], "convoy x", expected)
        assert words == [sys.executable, "-m", "engine.cli.main", *command]
    else:
        with pytest.raises(ConfigError) as error:
            common.command_words(args, [], "convoy x", expected)
        assert str(error.value) == sentence


def test_overrides_belong_after_the_dashes():
    with pytest.raises(ConfigError, match=r"--config\.train\.seed=1: belongs to the command\. Write it after --\."):
        common.command_words(argparse.Namespace(command=["train"]), ["train.seed=1"], "convoy x", "train")
