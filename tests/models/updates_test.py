"""The GAN, the mean teacher and the actor-critic: a resumed run equals an uninterrupted one."""

import shutil
from pathlib import Path

import pytest

import engine
from engine.api import prepared
from engine.api.saved_run import SavedRun
from engine.config import load
from engine.config.schema import Config
from tests import runs, zoo

ROOT = Path(__file__).parents[2]


def config(name: str, *settings: str) -> Config:
    """The config with 20 steps, a checkpoint at step 16, and no evaluation."""
    common = ("log.progress=none", "log.tensorboard=False", "log.every=1 step", "checkpoint.every=16 steps")
    sizes = ("train.global_batch_size=32", "train.total=20 steps")
    return load(f"configs.{name}", [*common, *sizes, "evaluations={}", "checkpoint.best=None", *settings])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gan", ["task.width=16", "train.ema_decay=0.9"]),
        ("mean_teacher", ["task.width=16", "train.accumulate=2"]),
        ("actor_critic", ["task.length=60"]),
    ],
)
def test_run_learns_and_a_resumed_run_is_bitwise_equal(tmp_path, name, settings):
    whole = config(name, *settings)
    engine.train(whole, workdir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/20")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/checkpoints/results.json").unlink(missing_ok=True)
    engine.train(whole, workdir=tmp_path / "run")
    losses = runs.rows(tmp_path / "whole")
    assert runs.rows(tmp_path / "run") == {step: losses[step] for step in range(17, 21)}
    program = prepared.program(whole)[0]
    zoo.assert_equal(*(SavedRun(tmp_path / run).restore(20, program) for run in ("whole", "run")))
    if name == "actor_critic":
        steps = runs.rows(tmp_path / "whole", "steps")
        assert steps[1] < 30 and steps[20] > 45


@pytest.mark.parametrize(("name", "most"), [("gan", 45), ("mean_teacher", 35)])
def test_model_has_at_most_the_stated_number_of_lines(name, most):
    lines = (ROOT / "models" / f"{name}.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= most
