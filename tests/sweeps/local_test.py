import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.base import json_text
from engine.base.host import start_ticks
from engine.sweeps import local
from engine.sweeps.local import LocalWorkers, memory_of_groups
from engine.sweeps.machine import Share
from engine.sweeps.workers import Job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]

WAITING = """
import json, os, signal
from pathlib import Path

def get_config():
    here = Path(__file__).parent
    found = dict(pids=[os.getpid(), os.getppid()], variable=os.environ["OWN"], cores=sorted(os.sched_getaffinity(0)))
    (here / "begun.new").write_text(json.dumps(found))
    (here / "begun.new").rename(here / "begun")
    while True:
        signal.pause()
"""
"""A config that is never complete: its command runs until it is killed."""


def waiting_job(folder: Path) -> Job:
    folder.mkdir(exist_ok=True)
    (folder / "waiting.py").write_text(WAITING)
    return Job("trial-0000", ["config", f"{folder}/waiting.py"], folder)


def workers(folder: Path, memory: int | None = None) -> LocalWorkers:
    core = min(os.sched_getaffinity(0))
    return LocalWorkers([Share(frozenset([core]), {"OWN": "7"}, memory)], folder / "logs")


def until[T](found: Callable[[], T]) -> T:
    """Returns the first true result."""
    end = time.monotonic() + 30
    while not (result := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def begun(folder: Path) -> dict:
    until((folder / "begun").exists)
    return json_text.read(folder / "begun")


def is_gone(pids: list[int]) -> bool:
    return not any(start_ticks(pid) for pid in pids)


def test_job_ends_with_its_exit_code_and_its_output_is_kept(tmp_path):
    here = workers(tmp_path)
    assert here.slots == 1
    for words, code, text in ((["--version"], 0, "convoy"), (["confg"], 1, "Did you mean config?")):
        here.start(Job("trial-0001", words, tmp_path))
        assert until(here.ended) == {"trial-0001": code}
        assert text in (tmp_path / "logs" / "trial-0001.log").read_text()
    assert "convoy" in (tmp_path / "logs" / "trial-0001.log").read_text()  # the output of both attempts
    assert here.ended() == {}


def test_run_dies_with_a_driver_that_is_killed(tmp_path):
    job = waiting_job(tmp_path / "a job")
    if (driver := os.fork()) == 0:
        try:
            workers(tmp_path).start(job)
            signal.pause()
        finally:
            os._exit(1)
    found = begun(job.run)
    assert not is_gone(found["pids"])
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    assert until(lambda: is_gone(found["pids"]))


def test_job_has_its_share_alone_and_close_kills_it(tmp_path):
    here, job = workers(tmp_path), waiting_job(tmp_path)
    here.start(job)
    found = begun(tmp_path)
    assert (found["variable"], found["cores"]) == ("7", [min(os.sched_getaffinity(0))])
    assert memory_of_groups()[os.getpgid(found["pids"][0])] > 1 << 20
    assert os.getpgid(found["pids"][0]) != os.getpgrp()  # Ctrl-C on a terminal reaches the driver alone
    with pytest.raises(StopIteration):  # there is no second share
        here.start(Job("trial-0001", ["--version"], tmp_path))
    here.close()
    assert until(lambda: is_gone(found["pids"]))


def test_stop_sends_sigterm(tmp_path):
    here = workers(tmp_path)
    here.start(waiting_job(tmp_path))
    begun(tmp_path)
    here.stop("of another driver")
    here.stop("trial-0000")
    assert until(here.ended) == {"trial-0000": 128 + signal.SIGTERM}
    here.stop("trial-0000")


def test_run_above_its_share_is_killed_before_memory_runs_out(tmp_path, monkeypatch):
    here = workers(tmp_path, memory=1000)
    here.start(waiting_job(tmp_path))
    begun(tmp_path)
    assert here.ended() == {}
    monkeypatch.setattr(local, "free_share", lambda: 0.01)
    monkeypatch.setattr(here, "_check_memory_at", 0.0)
    assert until(here.ended) == {"trial-0000": 137}
    last = (tmp_path / "logs" / "trial-0000.log").read_text().splitlines()[-1]
    assert last.startswith("out of memory: this machine has less than 5% of its memory left, and this run used ")
    assert "more than its share of 1000 B. Use fewer trials" in last


def test_run_within_its_share_is_never_killed(tmp_path, monkeypatch):
    here = workers(tmp_path, memory=1 << 40)
    here.start(waiting_job(tmp_path))
    begun(tmp_path)
    monkeypatch.setattr(local, "free_share", lambda: 0.01)
    assert here.ended() == {}
    here.close()
    assert "out of memory" not in (tmp_path / "logs" / "trial-0000.log").read_text()
