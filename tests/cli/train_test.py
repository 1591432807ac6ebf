"""`convoy train` in a process: its files, what it prints, and --fast-dev-run."""

import json

import pytest

from engine.cli.main import main
from engine.observe.writer import MEASURED, ROW_KEYS
from engine.training.step_spec import ENGINE_METRICS
from tests import runs

DIGITS = "--config=configs.digits"


def test_train_writes_its_files_and_prints_where(digits):
    path, done = digits
    assert {p.name for p in path.iterdir()} == {
        "status.json", "metrics.jsonl", "config.txt", "checkpoints", "tensorboard", "log.txt", "goodput.jsonl",
        "code.json", "data.json", "lease",
    }  # fmt: skip
    assert list((path / "tensorboard").iterdir())
    status = runs.status(path)
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 3, 0)
    assert 0 <= status["metrics"]["heldout/accuracy"] <= 1
    assert sorted(runs.rows(path)) == [1, 2, 3]
    for words in ("digits: done at step 3/3", str(path), "convoy evaluate", "heldout/accuracy"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "\r" not in done.stderr


def test_metrics_file_has_one_json_line_per_row(digits):
    lines = [json.loads(line) for line in (digits[0] / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "attempt", "time"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "heldout/loss" in line] == [3]
    own = {*ROW_KEYS, *MEASURED, *ENGINE_METRICS, "loss"}  # a Task's metric cannot have one of these names
    assert {name for line in lines for name in line if "/" not in name} - own == {"accuracy"}


def test_fast_dev_run_runs_two_steps_and_leaves_no_files(tmp_path):
    done = runs.convoy("train", DIGITS, "--fast-dev-run", "--verbose", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("step 2/2", "saving checkpoint of step 1", "heldout/accuracy", "done at step 2/2", "not kept"):
        assert words in done.stderr
    assert str(tmp_path) not in done.stderr.partition("done at step 2")[2]
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_with_workdir_keeps_its_files(tmp_path):
    done = runs.convoy("train", DIGITS, "--fast-dev-run", "--workdir=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "convoy evaluate here" in done.stderr and "train longer" not in done.stderr
    assert "here/checkpoints" in done.stderr and (tmp_path / "here" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("", "convoy train: one of the arguments --config --cooldown is required"),
        (f"{DIGITS} --cooldown=runs/digits", "argument --cooldown: not allowed with argument --config"),
        ("--cooldown=runs/digits --fast-dev-run", "--fast-dev-run: a cooldown trains to its end"),
        (f"{DIGITS} --cooldown-steps=0.1", "--cooldown-steps: is the length of a cooldown. Name the run: --cooldown="),
        ("--cooldown=runs/absent", "runs/absent: is not a run directory, it has no config.txt"),
    ],
)
def test_flags_of_a_cooldown_that_do_not_fit_are_one_sentence(tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags.split()]) == 1
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())
