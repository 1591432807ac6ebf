"""Cooldowns: equality with a run of that length, several lengths from one run, resumes, and refused requests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.api.cooldown import cooldown
from engine.base.errors import CheckpointError, ConfigError, ConvoyError, RunError
from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.policy import RESULTS
from engine.config.text import to_text
from engine.lineage.tree import lineage_of
from engine.lineage.tree import to_text as tree_text
from engine.run.directory import RunDirectory
from tests import runs, zoo

WSD = dict(
    task=dict(target="tests.zoo.Classify", dropout=0.2),
    optimizer__schedule="warmup_stable_decay",
    optimizer__schedule_arguments=dict(decay="4 steps"),
    optimizer__warmup="2 steps",
    train__ema_decay=0.5,
    checkpoint__every="3 steps",
    checkpoint__keep_latest=99,
    evaluations={},
    log__every="4 steps",  # the row is unfinished at step 6
)


def config(total: int, **settings: Any):
    return runs.config(**{"train__total": f"{total} steps", **WSD, **settings})


def digests(run: Path, step: int) -> dict[str, str]:
    """Returns the digest of every array of a checkpoint."""
    return json.loads((run / "checkpoints" / str(step) / MANIFEST).read_text())["arrays"]


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cooldown") / "long"
    engine.train(config(16), workdir=path)
    (path / "checkpoints" / RESULTS).write_text('{"6": {"heldout/loss": 0.5}, "9": {"heldout/loss": 0.4}}')
    return path


@pytest.fixture(scope="module")
def decayed(long) -> tuple[Path, list[str]]:
    """Returns a cooldown from step 6, and what it said."""
    messages: list[str] = []
    summary = cooldown(f"{long}@6", on_message=messages.append)
    assert summary.step == 10
    return summary.directory.path, messages


def test_cooldown_is_bitwise_the_run_of_its_length(long, decayed, tmp_path):
    path, messages = decayed
    assert path == long.with_name("long-cooldown-6")
    assert messages == [f"cooldown of {long} from step 6: the learning rate decays over 4 steps, to step 10"]
    engine.train(config(10), workdir=tmp_path)
    assert digests(path, 10) == digests(tmp_path, 10)
    expected, found = runs.rows(tmp_path), runs.rows(path)
    assert found == {step: loss for step, loss in expected.items() if step > 6}
    assert (path / "checkpoints" / RESULTS).read_text() == '{\n "6": {\n  "heldout/loss": 0.5\n }\n}\n'


def test_run_is_only_read_and_can_go_on(long, decayed):
    assert runs.status(long)["step"] == 16
    assert engine.train(config(16), workdir=long).step == 16, "its files are as before"
    sizes = [(long / "checkpoints/6" / name).stat().st_nlink for name in (MANIFEST, "position/position.json")]
    assert sizes == [1, 2], "arrays are shared on one disk, the manifest, which readers lock, is not"


def test_several_lengths_start_from_one_run(long, tmp_path):
    """Without a step, from the newest checkpoint of the stable phase; a fraction is that of the new run."""
    summary = cooldown(long, steps=0.25, workdir=tmp_path / "quarter", overrides=["log.every=6 steps"])
    assert summary.step == 16
    stored = (tmp_path / "quarter/config.txt").read_text()
    assert "decay: 4 steps" in stored and "log.every: 6 steps" in stored
    assert cooldown(long, step=3, steps="2 steps", workdir=tmp_path / "short").step == 5
    assert digests(tmp_path / "quarter", 12) == digests(long, 12)


def test_same_call_resumes_the_cooldown_when_the_run_is_gone(long, decayed, tmp_path):
    expected, gone = digests(decayed[0], 10), f"{long}-gone"
    (tmp_path / "checkpoints/6").mkdir(parents=True)  # what a process leaves that is killed while it copies
    shutil.copy(decayed[0] / "lineage.json", tmp_path)
    assert cooldown(long, workdir=tmp_path).step == 10
    assert digests(tmp_path, 10) == expected
    shutil.rmtree(tmp_path / "checkpoints/10")
    record = tmp_path / "lineage.json"
    record.write_text(record.read_text().replace(f'"{long}"', f'"{gone}"'))
    assert cooldown(gone, workdir=tmp_path).step == 10
    assert digests(tmp_path, 10) == expected
    assert cooldown(long, step=6, workdir=tmp_path).step == 10, "the run was moved"
    with pytest.raises(RunError, match=r"holds the cooldown of \S+/long-gone from step 6, not of \S+/long from step 9"):
        cooldown(long, step=9, workdir=tmp_path)
    with pytest.raises(RunError, match=r"holds a cooldown of another length: train.total: 10 steps -> 12 steps"):
        cooldown(long, steps="6 steps", workdir=tmp_path)


class Timed(zoo.Classify):
    """Its loss depends on the length of the run."""

    def loss(self, model, batch, rng, context):  # pyright: ignore[reportIncompatibleMethodOverride]
        return (1 - context.step / context.total_steps) * super().loss(model, batch, rng)


def test_task_that_reads_the_length_requires_accept_schedule_change(tmp_path):
    engine.train(config(9, task=dict(target="tests.api.cooldown_test.Timed", model="linear")), workdir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"9 steps -> 7 steps changes context.total_steps.*--accept-schedule-change"):
        cooldown(tmp_path / "run", step=3)
    assert cooldown(tmp_path / "run", step=3, accept_schedule_change=True).step == 7


def test_lineage_names_the_checkpoint(long, decayed):
    assert "cooldown: run long (step 6, state done at 16/16" in tree_text(lineage_of(decayed[0]))


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        (
            dict(step=15),
            CheckpointError,
            r"step 15 lies in the decay.*steps 2 to 12\. Checkpoints: 3,",
        ),
        (dict(step=17), CheckpointError, r"there is no checkpoint of step 17\. Checkpoints: 3, 6,"),
        (dict(steps=1.0), ConfigError, r"--cooldown-steps: found 1.0\. Allowed: a duration, or a fraction"),
        (dict(steps="0 steps"), ConfigError, "--cooldown-steps: found '0 steps'. Write a length above 0"),
        (dict(steps="3 minutes"), ConfigError, "--cooldown-steps: found '3 minutes'"),
        (dict(overrides=["train.seed=3"]), ConfigError, r"must not change:\s+train.seed: 0 -> 3"),
        (dict(overrides=["train.total=9 steps"]), ConfigError, "train.total: is not a setting of a cooldown"),
    ],
)
def test_request_that_does_not_fit_is_refused_before_anything_is_written(long, tmp_path, settings, kind, text):
    with pytest.raises(kind, match=text):
        cooldown(long, **settings, workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_directory_of_another_run_is_refused(long):
    with pytest.raises(RunError, match=r"long holds another run. Choose another --workdir for the cooldown"):
        cooldown(long, workdir=long)


def test_checkpoint_that_had_decayed_before_the_run_became_longer_is_refused(long, tmp_path):
    shutil.copytree(long, tmp_path / "run")
    (tmp_path / "run/config.txt").write_text(to_text(config(40)))
    with pytest.raises(CheckpointError, match=r"step 15 was saved with train.total = 16 steps, .* steps 2 to 12\."):
        cooldown(tmp_path / "run", step=15)


def stored(path: Path, **settings: Any) -> Path:
    """Writes a run that has only a config and the size of its data."""
    directory = RunDirectory.open(path)
    directory.write_config_text(to_text(config(16, **settings)))
    directory.write_data_text(json.dumps({"data": {"examples": "64", "content": ""}}))
    directory.close()
    return path


HEAD = dict(match="^head", schedule="warmup_stable_decay", schedule_arguments=dict(decay="3 steps"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            dict(optimizer__schedule="constant", optimizer__schedule_arguments={}),
            "optimizer.schedule is constant. A cooldown",
        ),
        (dict(optimizer__groups__head=dict(match="^head", schedule="cosine")), "groups.head.schedule is cosine, which"),
        (dict(optimizer__groups__head=HEAD), "no checkpoint lies in the stable phase, which are steps 2 to 12"),
        (dict(optimizer__groups__head=dict(HEAD, warmup="1 epoch", frozen_until="5 steps")), "which are steps 9 to 12"),
    ],
)
def test_schedules_decide_the_stable_phase(tmp_path, settings, text):
    with pytest.raises(ConvoyError, match=text):
        cooldown(stored(tmp_path / "run", **settings))
