"""`RayWorkers` on a real cluster of two nodes: runs of digits, a lost node, and a driver that was killed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.ray.connection import connect
from engine.sweeps.ray_workers import RayWorkers
from engine.sweeps.workers import Job
from tests import runs
from tests.launch.programs import alive
from tests.ray import gate
from tests.ray.clusters import Nodes, cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]

STEPS = 40
HELD = (25, 35)  # steps at which the run waits: for the end of its driver, and of its node


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(num_cpus=0) as found:
        nodes = Nodes(found)
        nodes.add(2)
        yield nodes
        connect(found.address).shutdown()


def job(folder: Path, *more: str, name: str = "trial-0001") -> Job:
    words = ("train", "--config=configs.digits", "--config.checkpoint.every=10 steps", "--config.log.every=1 step")
    words += (f"--config.train.total={STEPS} steps", "--config.log.tensorboard=False", f"--workdir={folder / name}")
    return Job(name, [*words, *more], folder / name)


def ends(workers: RayWorkers) -> dict[str, int]:
    """Waits for the end of a job."""
    end = time.monotonic() + 180
    while not (found := workers.ended()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def steps(run: Path) -> int:
    return len(runs.rows(run)) if (run / "metrics.jsonl").exists() else 0


def wait(condition) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_run_of_a_killed_driver_and_of_a_lost_node_continues_and_ends(nodes, tmp_path, monkeypatch):
    """A run on its way through a killed driver and a lost node."""
    trial = job(tmp_path, *gate.flags(tmp_path, *HELD))
    driver = f"""
import time
from engine.sweeps.ray_workers import RayWorkers
from engine.sweeps.workers import Job
workers = RayWorkers({nodes.address!r}, resources={{"slot": 1}})
workers.start(Job({trial.name!r}, {trial.words!r}, {str(trial.run)!r}))
time.sleep(3600)
"""
    process = subprocess.Popen([sys.executable, "-c", driver], env=runs.environment(**runs.COMPILING))
    wait(lambda: steps(trial.run) > 20)
    first = runs.status(trial.run)["pid"]
    process.kill()
    process.wait()

    for name, value in runs.COMPILING.items():  # which the runs of this driver get, too
        monkeypatch.setenv(name, value)
    workers = RayWorkers(nodes.address, resources={"slot": 1})
    assert workers.slots == 2
    starts = [workers.start(trial)]

    def until(condition) -> None:
        """Waits, and starts the job again if Ray has cancelled its actor, as the driver of a sweep does."""

        def met() -> bool:
            if codes := workers.ended():
                assert codes == {trial.name: 137} and len(starts) < 6
                starts.append(workers.start(trial))
            return condition()

        wait(met)

    until(lambda: runs.status(trial.run)["attempt"] >= 2)
    assert not alive(first)  # before the second attempt
    (tmp_path / str(HELD[0])).touch()
    until(lambda: steps(trial.run) > 30)
    second = runs.status(trial.run)["pid"]
    nodes.kill()
    nodes.kill()
    wait(lambda: not alive(second))
    (tmp_path / str(HELD[1])).touch()
    nodes.add(1)
    until(lambda: runs.status(trial.run)["state"] == "done")
    while workers.ended() != {trial.name: 0}:
        time.sleep(0.02)
    found = runs.status(trial.run)
    assert found["step"] == STEPS and found["attempt"] >= 3
    assert sorted(runs.rows(trial.run)) == list(range(1, STEPS + 1))
    workers.close()


def test_failed_job_shows_the_end_of_its_output_and_a_waiting_one_can_be_stopped(nodes, tmp_path, capsys):
    workers = RayWorkers(nodes.address, resources={"slot": 1})
    workers.start(job(tmp_path, "--config.data.split=tomorrow"))
    assert ends(workers) == {"trial-0001": 1}
    assert "trial-0001: the end of its output:" in (text := capsys.readouterr().err) and "tomorrow" in text
    waiting = RayWorkers(nodes.address, resources={"nowhere": 1})
    assert waiting.slots == 1
    waiting.start(job(tmp_path, name="trial-0002"))
    waiting.stop("trial-0002")
    assert ends(waiting) == {"trial-0002": 42} and os.listdir(tmp_path) == []
    waiting.close()
