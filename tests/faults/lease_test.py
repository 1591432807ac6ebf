"""Two jobs in one run directory: only the owner of the lease writes, also when jobs die, sleep or run in containers."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from engine.run.lease import STALE_S
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

CONTAINER = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")  # the process in it has pid 1
ELSEWHERE = {"boot": "another", "host": "elsewhere", "machine": "another", "namespace": "pid:[1]", "pid": 1}
HELD = "another job trains here: process"


def lease(run: Path) -> dict[str, str]:
    (file,) = (run / "lease").iterdir()
    return json.loads(file.read_text())


def move_elsewhere(run: Path) -> None:
    """Rewrites the owner of a lease as a process of another host, which cannot be inspected from here."""
    (file,) = (run / "lease").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | ELSEWHERE))


def first_loss(job: harness.Job, run: Path, attempt: int) -> float:
    """Waits for the first step of an attempt; returns the seconds since the job's start."""
    job.until(lambda: attempt in harness.attempts(run).values())
    return time.monotonic() - job.started


def lost_steps(before: int, run: Path, attempt: int) -> int:
    return before - min(step for step, last in harness.attempts(run).items() if last == attempt) + 1


@pytest.mark.case("two jobs in one directory")
def test_second_job_is_refused_and_the_first_continues(tmp_path, one, add_row):
    where, run = harness.config(tmp_path / "config", pause=2.0, checkpoint__every="1 step"), tmp_path / "run"
    with harness.Job("train", where, f"--workdir={run}") as first:
        first.until_step(run, 1)
        with harness.Job("train", where, f"--workdir={run}", processes=2) as second:
            assert second.end() == 1, second.output
            taken = time.monotonic() - second.started
            owner = lease(run)
            assert f"{HELD} {first.pid_of(0)} on host {owner['host']}, since {owner['since']}" in second.output
            assert f"stop it (kill {first.pid_of(0)}), then start again" in second.output
            assert second.output.count(HELD) == 1 and "Traceback" not in second.output
        first.until(lambda: harness.saved(run))
        with harness.Job("checkpoints", str(run)) as reader:  # which needs no lease
            assert reader.end() == 0, reader.output
        first.signal(0, signal.SIGTERM)
        assert first.end() == 42, first.output
    assert harness.status(run)["attempt"] == 1
    where = harness.config(tmp_path / "config2")
    with harness.Job("train", where, f"--workdir={run}") as again:
        assert again.end() == 0, again.output
        assert "takes it over" not in again.output  # the lease was released
    assert harness.outcome(run) == one
    add_row("a second job is refused", detected_s=taken, bitwise=True, code=1)


@pytest.mark.case("two jobs in one directory")
def test_new_job_takes_over_a_killed_job_at_once(tmp_path, one, add_row):
    where, run = harness.config(tmp_path / "config", pause=0.05), tmp_path / "run"
    with harness.Job("train", where, f"--workdir={run}") as first:
        first.until_step(run, 12)
        owner = lease(run)
        harness.kill(first.process.pid)
        first.end()
        before = max(harness.losses(run))
    with harness.Job("train", where, f"--workdir={run}") as second:
        recovered = first_loss(second, run, 2)
        assert second.end() == 0, second.output
    message = f"process {owner['pid']} on host {owner['host']}, since {owner['since']} ended without releasing this run"
    assert message in (run / "log.txt").read_text()
    assert harness.outcome(run) == one
    lost = lost_steps(before, run, 2)
    add_row("a killed job is taken over at once", recovered_s=recovered, lost=lost, bitwise=True, code=0)


@pytest.mark.case("two jobs in one directory")
def test_stale_lease_of_another_host_is_taken_over_and_its_owner_stops(tmp_path, one, add_row):
    """The first job is stopped. Only its lease is visible, whose counter does not change."""
    where, run = harness.config(tmp_path / "config", pause=0.1), tmp_path / "run"
    fast = harness.config(tmp_path / "fast")
    with harness.Job("train", where, f"--workdir={run}") as first:
        first.until_step(run, 12)
        first.signal(0, signal.SIGSTOP)
        time.sleep(0.1)
        before = max(harness.losses(run))
        move_elsewhere(run)
        with harness.Job("train", fast, f"--workdir={run}") as second:
            recovered = first_loss(second, run, 2)
            assert recovered >= STALE_S
            assert second.end() == 0, second.output
            assert f"waiting {STALE_S:g} s to see whether it is still alive" in second.output
        assert f"has not renewed its lease of this run for {STALE_S:g} s" in (run / "log.txt").read_text()
        found, status, saved = harness.outcome(run), harness.status(run), harness.saved(run)
        lines = [(run / name).read_bytes() for name in ("metrics.jsonl", "goodput.jsonl")]
        woken = first.signal(0, signal.SIGCONT)
        assert first.end() == 1, first.output
        detected = time.monotonic() - woken
        assert f"{run}: another job has taken over this run: process" in first.output
        assert "Traceback" not in first.output
    assert found == one == harness.outcome(run)
    assert (harness.status(run), harness.saved(run)) == (status, saved)
    assert [(run / name).read_bytes() for name in ("metrics.jsonl", "goodput.jsonl")] == lines
    lost = lost_steps(before, run, 2)
    what = "a stale lease is taken over; its owner continues and stops"
    add_row(what, detected_s=detected, recovered_s=recovered, lost=lost, bitwise=True, code=1)


@pytest.mark.case("two jobs in one directory")
@pytest.mark.skipif(
    subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0, reason="no pid namespaces here"
)
def test_lease_distinguishes_containers_whose_job_is_pid_1(tmp_path, one, add_row):
    where = harness.config(tmp_path / "config", pause=2.0, checkpoint__every="1 step")
    run = tmp_path / "run"
    token: dict[str, Any] = {"CONVOY_RUN_TOKEN": "the-same-job"}
    with harness.Job("train", where, f"--workdir={run}", prefix=CONTAINER, **token) as first:
        first.until_step(run, 1)
        assert lease(run)["pid"] == 2  # the child of process 1 of the container, which waits for it
        with harness.Job("train", where, f"--workdir={run}", prefix=CONTAINER) as second:
            assert second.end() == 1, second.output
            assert f"{HELD} 2 on host" in second.output
        first.until(lambda: harness.saved(run))
        for pid in first.pids():
            harness.kill(pid)
        first.end()
        before = max(harness.losses(run))
    fast = harness.config(tmp_path / "fast")
    with harness.Job("train", fast, f"--workdir={run}", prefix=CONTAINER, **token) as third:
        recovered = first_loss(third, run, 2)
        assert third.end() == 0, third.output
    # The kernel may give the new container the number that the namespace of the first one had.
    log = (run / "log.txt").read_text()
    assert "was an earlier start of this job; this start takes" in log or "ended without releasing this run" in log
    assert harness.outcome(run) == one
    lost = lost_steps(before, run, 2)
    add_row("containers, in which each is pid 1; the same token", recovered_s=recovered, lost=lost, bitwise=True)


@pytest.mark.case("two jobs in one directory")
def test_copy_of_a_running_run_trains_under_its_own_lease_and_a_renamed_run_is_refused(tmp_path, one, add_row):
    where = harness.config(tmp_path / "config", pause=2.0, checkpoint__every="1 step")
    run, copy = tmp_path / "run", tmp_path / "copy"
    fast = harness.config(tmp_path / "fast")
    with harness.Job("train", where, f"--workdir={run}") as first:
        first.until(lambda: harness.saved(run))
        first.signal(0, signal.SIGSTOP)  # for a moment, since cp fails on a file that is replaced meanwhile
        subprocess.run(["cp", "-a", run, copy], check=True)
        first.signal(0, signal.SIGCONT)
        with harness.Job("train", fast, f"--workdir={copy}") as second:
            recovered = first_loss(second, copy, 2)
            assert second.end() == 0, second.output
        assert f"trains in {run}; this job trains here under its own lease" in (copy / "log.txt").read_text()
        first.signal(0, signal.SIGSTOP)  # it neither reaches its end nor notices that its directory is gone
        run.rename(tmp_path / "renamed")
        with harness.Job("train", fast, f"--workdir={tmp_path / 'renamed'}") as third:
            assert third.end() == 1, third.output
            assert "is either the same one under another path, or a copy." in third.output
    assert harness.outcome(copy) == one
    add_row("a copy trains on; a renamed run is refused", recovered_s=recovered, bitwise=True, code=0)
