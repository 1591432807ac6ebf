import json
import os
import signal
from pathlib import Path

import pytest

from engine.cli.main import main
from tests import runs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SEARCH = (
    *("sweep", "--config=configs.digits", "--space.optimizer.learning_rate=choice(3e-3, 1e-5, 2e-5, 3e-5)"),
    *("--sampler=grid", "--seed=9", "--prune=halving", "--factor=2", "--parallel=2"),
    *(
        "--config.train.total=6 steps",
        "--config.evaluations.heldout.every=2 steps",
        "--config.optimizer.warmup=0 steps",
    ),
    *("--config.checkpoint.every=1 step", "--config.data.limit=256", "--config.log.every=1 step"),
)


def status(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """Returns what `convoy sweep status --json` prints."""
    capsys.readouterr()
    assert main(["sweep", "status", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns the folder of a sweep whose driver was killed twice, and the output of its last start."""
    path = tmp_path_factory.mktemp("sweep") / "found"
    run = path / "trials" / "0000"
    for seen in (run / "status.json", run / "checkpoints" / "results.json"):
        driver = runs.start(*SEARCH, f"--workdir={path}", cwd=None, **runs.COMPILING)
        runs.wait_for(seen.exists, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    done = runs.convoy(*SEARCH, f"--workdir={path}", cwd=None, **runs.COMPILING)
    assert done.returncode == 0, done.stderr
    return path, done.stdout + done.stderr


def test_sweep_that_was_killed_twice_loses_and_repeats_nothing(killed, capsys):
    path, said = killed
    found = status(path, capsys)
    assert found["finished"] == found["trials"] == 4
    assert found["failed"] == 0 and found["pruned"] >= 1
    assert "found: continues with" in said.replace(str(path), "found")
    for row in found["rows"]:
        ended = runs.status(path / row["runs"][0])
        assert (ended["state"], ended["step"]) == ("done", row["steps"])
        steps = list(runs.rows(path / row["runs"][0]))
        assert steps == sorted(set(steps)) and steps[-1] == row["steps"]
    assert {row["values"]["optimizer.learning_rate"] for row in found["rows"]} == {3e-3, 1e-5, 2e-5, 3e-5}
    assert found["steps"] < 4 * 6
    assert found["rows"][0]["values"] == {"optimizer.learning_rate": 3e-3}


def test_finished_sweep_starts_no_run_again(killed, capsys):
    path, _ = killed
    attempts = [runs.status(run)["attempt"] for run in sorted((path / "trials").iterdir())]
    assert main([*SEARCH, f"--workdir={path}"]) == 0
    assert "best: trial 0, heldout/accuracy" in capsys.readouterr().out
    assert [runs.status(run)["attempt"] for run in sorted((path / "trials").iterdir())] == attempts


def test_best_trial_is_a_config(killed, capsys):
    path, _ = killed
    assert main(["config", str(path / "best.py")]) == 0
    assert "optimizer.learning_rate: 0.003\n" in capsys.readouterr().out


def test_pruned_trial_is_continued_without_its_hook(killed, capsys):
    path, _ = killed
    pruned = next(row for row in status(path, capsys)["rows"] if row["state"] == "pruned")
    run = path / pruned["runs"][0]
    words = ("train", f"--config={run}", f"--workdir={run}", "--config.hooks.sweep.decisions=None")
    done = runs.convoy(*words, cwd=None, **runs.COMPILING)
    assert done.returncode == 0, done.stderr
    assert (runs.status(run)["step"], runs.status(run)["attempt"]) == (6, 2)


def test_another_space_is_refused_by_name(killed, capsys):
    path, _ = killed
    words = [word.replace("3e-5)", "4e-5)") for word in SEARCH]
    assert main([*words, f"--workdir={path}"]) == 1
    error = capsys.readouterr().err
    assert "space: optimizer.learning_rate was choice(0.003, 1e-05, 2e-05, 3e-05) and is" in error
    assert "another --workdir" in error


def test_sweep_of_which_every_trial_fails_exits_with_1(tmp_path):
    words = [*SEARCH, "--config.task.target=tests.zoo.Missing", "--trials=1", f"--workdir={tmp_path / 'sweep'}"]
    done = runs.convoy(*words)
    assert done.returncode == 1
    assert "trial 0 (learning_rate=0.003): failed: " in done.stderr
    assert "no trial has completed; 1 of 1 failed" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler=gird"], "--sampler=gird: unknown. Did you mean grid?"),
        (["--metric=held/accuracy"], "the config has no evaluation held. Did you mean heldout?"),
        (["--metric=accuracy"], "is not the metric of an evaluation. Allowed: heldout/NAME."),
        (["--budget=3 weeks"], "unknown unit"),
        (["--trials=0"], "--trials=0: allowed is a whole number from 1."),
        (["--prune=halfing"], "--prune=halfing: unknown. Did you mean halving?"),
        (["--seeds=2", "--space.train.seed=integer(1, 2)"], "--seeds: sets train.seed, which the space searches."),
        (["--parallel=99999"], "the cores of this machine"),
        (["--launch=--nodes=1"], "--launch: has no meaning with --on=local."),
        (["--on=k8s", "--launch=--image=a:1 --claim=c"], "with --on=k8s, name a folder in runs/"),
        (["--space.train.sed=integer(1, 2)"], "Did you mean train.seed?"),
    ],
)
def test_mistake_is_named_before_any_trial(words, said, tmp_path, capsys):
    path = tmp_path / "sweep"
    assert main([*SEARCH, f"--workdir={path}", *words]) == 1
    assert said in capsys.readouterr().err
    assert not (path / "trials").exists()
