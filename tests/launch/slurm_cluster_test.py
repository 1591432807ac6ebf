"""A run on a real Slurm cluster of two nodes: requeued at its time limit, with the result of an uninterrupted run."""

import os
import re
from pathlib import Path

import pytest

from tests import runs
from tests.faults import harness
from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import FIRST, Cluster

reason = slurm_cluster.missing()
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason) and "CI" not in os.environ, reason=reason or "Slurm is available"),
]


@pytest.fixture(scope="module")
def cluster():
    assert not reason, reason
    with Cluster() as cluster:
        yield cluster


class SlurmRun:
    """A training job, submitted by `convoy launch slurm`."""

    def __init__(self, cluster: Cluster, folder: Path, *words: str):
        hooks = {"slow": {"target": "tests.launch.slurm_cluster.SlowAtFirst", "every": "1 step"}}
        config = harness.config(folder / "config", hooks=hooks)
        self.cluster, self.path, self.logs = cluster, folder / "run", folder / "logs"
        launch = ("launch", "slurm", "--nodes=2", f"--logs={self.logs}", *words, "--")
        self._first = folder / "first"
        variables = {**runs.COMPILING, **cluster.environment, FIRST: str(self._first)}
        done = runs.convoy(*launch, "train", config, f"--workdir={self.path}", cwd=None, **variables)
        assert done.returncode == 0, done.stderr
        self.number = re.findall(r"Submitted batch job (\d+)", done.stdout)[0]

    def state(self) -> str:
        """Returns Slurm's state of the job."""
        return self.cluster.job(self.number)["JobState"]

    def stopped_while_training(self) -> bool:
        """Whether the first start that trained has ended, and the next start is queued or running."""
        return self._first.exists() and int(self._first.read_text()) < int(self.cluster.job(self.number)["Restarts"])

    def until_it_ends(self) -> None:
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.cluster.until(lambda: self.state() in ends, 300, self.logs)

    def log(self, task: int | None = None) -> str:
        """Returns the output of the batch script, or of a task."""
        return (self.logs / f"convoy-{self.number}{'' if task is None else f'-{task}'}.out").read_text()


def test_run_stopped_by_its_time_limit_requeues_and_matches_an_uninterrupted_run(cluster, tmp_path):
    run = SlurmRun(cluster, tmp_path, "--time=1", "--stop-before=5")  # Slurm stops it after 25 to 55 s
    cluster.until(run.stopped_while_training, 300, run.logs)
    cluster.command("scontrol", "update", f"JobId={run.number}", "TimeLimit=60")  # a busy machine may start slowly
    run.until_it_ends()
    logs = cluster.log_tails(run.logs)
    assert run.state() == "COMPLETED", logs
    restarts = int(cluster.job(run.number)["Restarts"])
    assert restarts >= 1
    assert "convoy: exit code 42, requeueing for restart 1" in run.log(), logs
    assert "convoy: exit code 0, no restart" in run.log()
    for task in range(2):
        assert run.log(task).count(f"processes: {task} of 2, coordinator ") == restarts + 1
        assert "(Slurm: " in run.log(task)
    last = harness.status(run.path)
    assert (last["state"], last["step"], last["attempt"]) == ("done", harness.STEPS, restarts + 1)
    attempts = harness.attempts(run.path)
    assert attempts[1] < attempts[harness.STEPS]  # the last start resumed from a checkpoint
    assert harness.outcome(run.path) == harness.undisturbed(tmp_path / "unbroken", processes=2)


def test_cancelled_run_saves_and_is_not_requeued(cluster, tmp_path):
    run = SlurmRun(cluster, tmp_path, "--time=60")
    cluster.until(lambda: len(harness.losses(run.path)) >= 2, 180, run.logs)
    cluster.command("scancel", run.number)
    run.until_it_ends()
    assert run.state() == "CANCELLED"
    last = harness.status(run.path)
    assert (last["state"], last["exit_code"]) == ("preempted", 42)
    assert max(harness.saved(run.path)) == last["step"] < harness.STEPS
    assert cluster.job(run.number)["Restarts"] == "0"
