"""Runs on ragged scenes: batches of several shapes, equal evaluations, and exact resume on other processes."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Mean, Task
from engine.api.prepared import prepare
from engine.base.errors import ConfigError
from engine.config.text import to_text
from engine.loop.trainer import Trainer
from engine.run.directory import RunDirectory
from tests import runs

SCENES = {"target": "convoy_zoo.models.scenes.Scenes", "count": 160, "most": 40}
FIELDS = ["agents", "step"]
BUCKETED = {"target": "engine.Bucketed", "source": SCENES, "lengths": [15, 40], "fields": FIELDS, "consecutive": 2}
PADDED = {"target": "engine.Padded", "source": SCENES, "lengths": 40, "fields": FIELDS}
PACKED = {"target": "engine.Packed", "documents": SCENES, "length": 48, "fields": FIELDS}


class NextStep(Task):
    """A linear model of each agent: convoy_zoo.models.scenes.NextStep compiles for 5 s."""

    def build(self, rngs):
        return nnx.Linear(4, 2, rngs=rngs)

    def loss(self, model, batch, rng):
        error = model(batch["agents"]) - batch["step"]
        distance = jnp.abs(error).sum(-1)
        return Loss.of((error**2).sum(-1), batch["mask"], {"distance": Mean.of(distance, batch["mask"])})


def config(data, **settings):
    """A config: 160 scenes of up to 40 agents, batches of 16, 12 steps."""
    task = {"target": "tests.ragged_runs_test.NextStep"}
    return runs.config(**{"task": task, "data": data, "train__total": "12 steps", "evaluations": {}, **settings})


def train(config, path, devices: int = 1) -> str:
    """Trains on the first devices, for which a program compiles faster than for all eight; returns the messages."""
    messages: list[str] = []
    prepared = prepare(config, devices=jax.devices()[:devices])
    with RunDirectory.open(path) as directory:
        Trainer(
            prepared.task,
            prepared.mesh,
            prepared.source,
            config,
            directory,
            evaluation_sources=prepared.evaluation_sources,
            hooks={},
            on_row=lambda row: None,
            on_message=messages.append,
        ).run()
    return "\n".join(messages)


def losses(run: Path, name: str = "loss") -> list[float]:
    return list(runs.rows(run, name).values())


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    """A run on bucketed scenes whose dispatches of two steps are broken by evaluations at odd steps; its messages."""
    path = tmp_path_factory.mktemp("balanced")
    evaluations = {
        name: {"data": data, "every": "3 steps", "batch_size": 8}
        for name, data in {"padded": PADDED, "bucketed": BUCKETED, "packed": PACKED}.items()
    }
    data = {"target": "engine.Balanced", "ranks": 8, "source": BUCKETED}
    return path, train(config(data, train__steps_per_dispatch=2, evaluations=evaluations), path)


def test_evaluations_of_padded_bucketed_and_packed_scenes_are_equal(balanced):
    names = ("padded", "bucketed", "packed")
    path, _ = balanced
    padded, *others = [losses(path, f"{name}/loss") + losses(path, f"{name}/distance") for name in names]
    assert len(padded) == 8
    for other in others:
        np.testing.assert_allclose(other, padded, rtol=1e-6)


def test_padding_and_lengths_are_reported(balanced):
    path, messages = balanced
    first = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0.1 < first["data_padding"] < 0.7 and "data_imbalance" not in first  # the run has one rank
    assert "of the batches is padding; lengths: 15 (" in messages
    assert "compiling a program for each of 2 lengths" in messages
    assert "another program is compiled" not in messages  # the evaluations had one for each length


def test_losses_do_not_depend_on_steps_per_dispatch_or_microbatches(balanced, tmp_path):
    data = {"target": "engine.Balanced", "ranks": 8, "source": BUCKETED}
    train(config(data, train__accumulate=2), tmp_path)
    found = losses(tmp_path)
    assert len(found) == 12 and found[-1] < found[0]
    np.testing.assert_allclose(found, losses(balanced[0]), rtol=2e-6)


def test_dispatch_of_more_steps_than_batches_of_one_length_is_refused(tmp_path):
    text = r"steps_per_dispatch = 4: .* gives 2 of its 2 lengths in a row. Set its argument consecutive=4, or train.st"
    with pytest.raises(ConfigError, match=text):
        train(config(BUCKETED, train__steps_per_dispatch=4), tmp_path)


@pytest.mark.multiprocess
def test_run_on_buckets_resumes_bitwise_equal_on_two_processes(tmp_path):
    """Without the last checkpoint of an unbroken run of one process."""
    settings = {"train__total": "24 steps", "checkpoint__every": "12 steps", "mesh__data": 2}
    run, found = tmp_path / "run", config(BUCKETED, **settings)
    train(found, tmp_path / "unbroken", devices=2)
    RunDirectory(tmp_path / "unbroken").write_config_text(to_text(found))
    shutil.copytree(tmp_path / "unbroken", run)
    shutil.rmtree(run / "checkpoints/24")
    (run / "metrics.jsonl").unlink()
    launch = ("launch", "local", "--processes=2", "--devices-per-process=1", "--")
    done = runs.convoy(*launch, "train", f"--config={run}", f"--workdir={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    unbroken = runs.rows(tmp_path / "unbroken")
    assert runs.rows(run) == {step: unbroken[step] for step in range(13, 25)}
