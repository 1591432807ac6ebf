import re
from pathlib import Path

import pytest

from engine.launch.cli_args import LaunchError
from engine.run import status
from engine.sweeps import timeouts
from engine.sweeps.cluster_workers import ClusterWorkers
from engine.sweeps.workers import Job


class Queue:
    """A scheduler in memory: name -> whether its job is queued or running."""

    def __init__(self):
        self.jobs: dict[str, bool] = {}
        self.calls: list[tuple[str, str]] = []
        self.is_down = False

    def submit(self, name, job):
        self.calls.append(("submit", name))
        self.jobs[name] = True

    def states(self, names):
        if self.is_down:
            raise LaunchError("no answer")
        return {name: self.jobs[name] for name in names if name in self.jobs}

    def cancel(self, name):
        self.calls.append(("cancel", name))
        self.jobs[name] = False


def job(folder: Path, number: int = 0) -> Job:
    run = folder / "trials" / f"{number:04}"
    run.mkdir(parents=True, exist_ok=True)
    return Job(f"trial-{number:04}", ["train"], run)


def write_status(job: Job, state: str, code: int | None) -> None:
    status.write(job.run / "status.json", status.Status(state=state, exit_code=code))


@pytest.mark.parametrize(
    ("state", "written", "code"),
    [("done", 0, 0), ("failed", 43, 43), ("preempted", 42, 42), ("training", None, 137), (None, None, 1)],
)
def test_exit_code_is_that_of_the_run(tmp_path, state, written, code):
    queue, one = Queue(), job(tmp_path)
    workers = ClusterWorkers(queue, tmp_path, slots=2)
    assert workers.ended() == {}
    workers.start(one)
    if state:
        write_status(one, state, written)
    assert workers.ended() == {}
    queue.jobs = dict.fromkeys(queue.jobs, False)
    assert workers.ended() == {"trial-0000": code}
    assert workers.ended() == {}


def test_job_that_the_scheduler_has_forgotten_has_ended(tmp_path):
    queue, one = Queue(), job(tmp_path)
    workers = ClusterWorkers(queue, tmp_path, slots=2)
    workers.start(one)
    write_status(one, "done", 0)
    queue.jobs.clear()
    assert workers.ended() == {"trial-0000": 0}


def test_next_driver_finds_a_running_job_again(tmp_path, monkeypatch):
    queue = Queue()
    ClusterWorkers(queue, tmp_path, slots=2).start(job(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    again = ClusterWorkers(queue, Path(tmp_path.name), slots=2)
    again.start(job(tmp_path))
    assert [call for call, _ in queue.calls] == ["submit"]
    queue.jobs = dict.fromkeys(queue.jobs, False)
    ClusterWorkers(queue, tmp_path, slots=2).start(job(tmp_path))
    assert [call for call, _ in queue.calls] == ["submit", "submit"]


def test_jobs_of_two_sweeps_have_different_short_names(tmp_path):
    queue = Queue()
    for name in ("a", "b"):
        ClusterWorkers(queue, tmp_path / name, slots=2).start(Job("trial-0003-seed-11", ["train"], tmp_path))
    assert len(queue.jobs) == 2
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name) for name in queue.jobs)


def test_stop_cancels_a_job_of_this_driver_alone(tmp_path):
    queue = Queue()
    workers = ClusterWorkers(queue, tmp_path, slots=2)
    workers.start(job(tmp_path))
    workers.stop("trial-0007")
    workers.stop("trial-0000")
    workers.close()
    assert [call for call, _ in queue.calls] == ["submit", "cancel"]


def test_scheduler_that_restarts_does_not_end_the_sweep(tmp_path, monkeypatch):
    queue = Queue()
    workers = ClusterWorkers(queue, tmp_path, slots=2)
    workers.start(job(tmp_path))
    queue.is_down = True
    assert workers.ended() == {}
    queue.is_down = False
    assert workers.ended() == {}
    queue.is_down = True
    assert workers.ended() == {}
    monkeypatch.setattr(timeouts, "SCHEDULER_S", -1.0)
    with pytest.raises(LaunchError, match="no answer"):
        workers.ended()
