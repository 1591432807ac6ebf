from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.config.loading import load
from engine.sweeps.commands import Commands
from engine.sweeps.folder import SweepFolder
from engine.sweeps.workers import Job
from tests.sweeps import scripted

REFERENCE = "convoy_zoo.configs.digits"
RATE = {"optimizer.learning_rate": 0.1}


def words(path: Path, seed: int = 0, **changes) -> list[str]:
    definition = scripted.definition(reference=REFERENCE, **changes)
    folder = SweepFolder(path)
    job = Job(folder.job_name(2, seed, definition.seeds), [], folder.run(2, seed, definition.seeds))
    return Commands(definition, folder, load(REFERENCE, definition.overrides)).words(RATE, seed, job)


def test_trial_is_an_ordinary_run():
    assert words(Path("sweeps/x"), overrides=["train.seed=5"]) == [
        "train",
        f"--config={REFERENCE}",
        "--config.train.seed=5",
        "--config.optimizer.learning_rate=0.1",
        "--workdir=sweeps/x/trials/0002",
    ]


def test_seeds_count_from_that_of_the_config():
    found = [words(Path("x"), seed, seeds=2, overrides=["train.seed=5"])[-2:] for seed in range(2)]
    assert found == [
        ["--config.train.seed=5", "--workdir=x/trials/0002/seed-0"],
        ["--config.train.seed=6", "--workdir=x/trials/0002/seed-1"],
    ]


def config_of(found: list[str]):
    return load(REFERENCE, [word.removeprefix("--config.") for word in found if word.startswith("--config.")])


@pytest.mark.parametrize("folder", ["sweeps/x", "/tmp/a (b), 'c'/1e-3", "7", "a b"])
def test_hook_reads_the_decisions_at_each_evaluation(folder):
    config = config_of(words(Path(folder), prune="halving", budget="10 minutes"))
    hook = config.hooks["sweep"]
    assert hook.target == "engine.sweeps.pruning.Pruning"
    assert str(hook.every) == str(config.evaluations["heldout"].every) == "5 epochs"
    assert dict(hook.arguments) == {
        "decisions": f"{folder}/decisions/trial-0002.json",
        "seconds": 600.0,
        "clock": f"{folder}/decisions/trial-0002.clock",
    }


def test_only_the_first_seed_is_pruned():
    found = [any("hooks.sweep" in word for word in words(Path("x"), seed, seeds=2, prune="median")) for seed in (0, 1)]
    assert found == [True, False]


def test_budget_replaces_the_total():
    assert "--config.train.total=7 steps" in words(Path("x"), budget="7 steps")


def test_value_that_the_config_refuses_is_named():
    with pytest.raises(ConfigError, match=r"train\.totl: unknown field"):
        words(Path("x"), overrides=["train.totl=3"])
