"""A sweep on a real Slurm cluster of two nodes, whose driver is killed."""

import os
import signal
from pathlib import Path

import pytest

from engine.launch.cli_args import LaunchError
from engine.launch.slurm import SlurmJob
from engine.sweeps.records import read_sweep
from engine.sweeps.slurm_jobs import SlurmScheduler
from tests import runs
from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import Cluster

reason = slurm_cluster.missing()
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason) and "CI" not in os.environ, reason=reason or "Slurm is available"),
]

SEARCH = (
    *("sweep", "--config=configs.digits", "--space.optimizer.learning_rate=choice(3e-3, 1e-5, 2e-5, 3e-5)"),
    *("--sampler=grid", "--prune=halving", "--on=slurm", "--launch=--nodes=1 --time=10", "--parallel=2"),
    *(
        "--config.train.total=4 steps",
        "--config.evaluations.heldout.every=2 steps",
        "--config.optimizer.warmup=0 steps",
    ),
    "--config.data.limit=256",
)


def test_killed_driver_finds_its_jobs_again(tmp_path: Path):
    with Cluster() as cluster:
        path = tmp_path / "sweep"
        variables = {**runs.COMPILING, **cluster.environment}
        driver = runs.start(*SEARCH, f"--workdir={path}", cwd=None, **variables)
        runs.wait_for(lambda: len(cluster.jobs()) == 2, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        done = runs.convoy(*SEARCH, f"--workdir={path}", cwd=None, **variables)
        logs = cluster.log_tails(path / "logs")
        assert done.returncode == 0, done.stderr + logs
        submitted = cluster.command("squeue", "--states=all", "--noheader", "--format=%j").split()
    assert len(submitted) == len(set(submitted)) == 4, logs  # no run was submitted twice
    trials = read_sweep(path).trials
    assert sorted(trial.state for trial in trials)[0] == "complete"
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    for trial in trials:
        ended = runs.status(path / trial.runs[0])
        assert (ended["state"], ended["step"], ended["attempt"]) == ("done", trial.steps, 1)


def test_missing_slurm_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scheduler = SlurmScheduler(SlurmJob(command=["train"], nodes=1, time="10"))
    with pytest.raises(LaunchError, match="squeue: not installed on this machine"):
        scheduler.states(["a"])
