"""Wall clocks that jump during a run, or differ between processes, do not change the run."""

import datetime
import itertools
import json
import math
import shutil
import signal
import time
from pathlib import Path

import pytest

from engine.run import goodput
from tests.faults import harness
from tests.faults.clock import HOUR, Clock

pytestmark = [
    pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the clock library"),
]  # fmt: skip

BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"  # a rule, so that no time zone database is needed
SUMMER_ENDS = datetime.datetime(2026, 10, 25, 1, 0, tzinfo=datetime.UTC)  # there: 03:00 becomes 02:00


def moments(run: Path) -> list[str]:
    """The time stamps of the log."""
    return [line.split(" ", 1)[0] for line in (run / "log.txt").read_text().splitlines()]


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.case("clocks that jump or differ")
def test_wall_clock_jumps_do_not_change_the_run(tmp_path, one, add_row):
    """Saves are due every second. A wall clock would make a save due at each jump, or none for an hour."""
    clock, run = Clock(tmp_path / "clock"), tmp_path / "run"
    where = harness.config(tmp_path / "config", pause=0.1, checkpoint__every="1 second", checkpoint__keep_latest=3)
    jumps = 0
    with harness.Job("train", where, f"--workdir={run}", **clock.env) as job:
        job.until_step(run, 1)
        for offset in itertools.cycle((HOUR, 0, -HOUR, 0)):
            if job.process.poll() is not None:
                break
            clock.jump_to(offset)
            jumps += 1
            time.sleep(0.25)
        assert job.end() == 0, job.output
        took = time.monotonic() - job.started
    assert jumps >= 8
    assert harness.outcome(run) == one
    saved = (run / "log.txt").read_text().count("saving checkpoint of step")
    assert 3 <= saved <= took + 1
    assert len(harness.saved(run)) == 3 and max(harness.saved(run)) == harness.STEPS
    for row in rows(run):
        for name in ("step_time_s", "examples_per_s", "data_wait"):
            assert row.get(name, 0) >= 0 and math.isfinite(row.get(name, 0)), row
        assert row.get("step_time_s", 0) < took, row
    entries = goodput.read(run / "goodput.jsonl")
    assert all(entry["seconds"] >= 0 and "wall" not in entry for entry in entries)
    assert 0 < sum(entry["seconds"] for entry in entries) <= took
    seconds = [row["time"] for row in rows(run)]
    assert max(b - a for a, b in itertools.pairwise(seconds)) > HOUR / 2, "the clock did not jump"
    add_row(f"the wall clock jumps by an hour {jumps} times", bitwise=True, code=0)


@pytest.mark.case("clocks that jump or differ")
def test_clocks_that_are_all_set_back_give_no_negative_times(tmp_path, add_row):
    """As libfaketime does, also with the monotonic clock. Time limits of such a process are too long by the jump.

    Half of the machine's uptime at most, since a monotonic clock below 0 makes every `time.sleep` fail.
    """
    clock, run = Clock(tmp_path / "clock"), tmp_path / "run"
    where = harness.config(tmp_path / "config", pause=0.1, checkpoint__every=None, **harness.EVALUATED)
    with harness.Job("train", where, f"--workdir={run}", CONVOY_TEST_CLOCK_ALL="1", **clock.env) as job:
        job.until_step(run, 10)
        clock.jump_to(-int(min(HOUR, time.monotonic() / 2)))
        job.until(lambda: sum(entry["steps"] for entry in goodput.read(run / "goodput.jsonl")) > 20)
        job.signal(0, signal.SIGKILL)
        assert job.end() == 137
        took = time.monotonic() - job.started
    seconds = [entry["seconds"] for entry in goodput.read(run / "goodput.jsonl")]
    assert min(seconds) >= 0 and 0 < sum(seconds) <= took
    add_row("every clock is set back, then SIGKILL", code=137)


@pytest.mark.case("clocks that jump or differ")
def test_end_of_daylight_saving_time_does_not_change_the_run(tmp_path, one, add_row):
    """The local clock jumps from 02:59:59 to 02:00:00 during the run. Time stamps are in UTC and increase."""
    offset = int((SUMMER_ENDS - datetime.datetime.now(datetime.UTC)).total_seconds()) - 300
    clock, run = Clock(tmp_path / "clock", offset), tmp_path / "run"
    where = harness.config(tmp_path / "config", pause=0.05)
    with harness.Job("train", where, f"--workdir={run}", TZ=BERLIN, **clock.env) as job:
        job.until_step(run, 20)
        clock.jump_to(int((SUMMER_ENDS - datetime.datetime.now(datetime.UTC)).total_seconds()))
        assert job.end() == 0, job.output
    assert harness.outcome(run) == one
    found = moments(run)
    assert found == sorted(found) and found[0] < f"{SUMMER_ENDS:%Y-%m-%dT%H:%M:%SZ}" <= found[-1]
    status = harness.status(run)
    assert status["started"] < f"{SUMMER_ENDS:%Y-%m-%dT%H}" < status["updated"]
    add_row("summer time ends during the run", bitwise=True, code=0)


@pytest.mark.case("clocks that jump or differ")
def test_lease_is_respected_between_jobs_with_different_clocks(tmp_path, one, add_row):
    ahead, behind = Clock(tmp_path / "ahead", HOUR), Clock(tmp_path / "behind", -HOUR)
    where, run = harness.config(tmp_path / "config", pause=5.0, checkpoint__every="1 step"), tmp_path / "run"
    fast = harness.config(tmp_path / "fast")
    with harness.Job("train", where, f"--workdir={run}", **ahead.env) as first:
        first.until(lambda: harness.losses(run))
        with harness.Job("train", where, f"--workdir={run}", **behind.env) as second:
            assert second.end() == 1, second.output
            assert f"another job trains here: process {first.pid_of(0)} on host" in second.output
        first.signal(0, signal.SIGKILL)
        first.end()
    with harness.Job("train", fast, f"--workdir={run}", **behind.env) as third:
        assert third.end() == 0, third.output
    assert "ended without releasing this run; this job takes it over" in (run / "log.txt").read_text()
    assert harness.outcome(run) == one
    add_row("jobs in one directory, clocks two hours apart", bitwise=True, code=0)


@pytest.mark.case("clocks that jump or differ")
def test_processes_with_different_clocks_train_together(tmp_path, two, add_row):
    where, run = harness.config(tmp_path / "config", mesh__fsdp=2), tmp_path / "run"
    clocks = [Clock(tmp_path / f"clock{i}", offset) for i, offset in enumerate((HOUR, -HOUR))]
    with harness.start_processes([("train", where, f"--workdir={run}")] * 2, [clock.env for clock in clocks]) as jobs:
        for job in jobs:
            assert job.end() == 0, job.output
    assert harness.outcome(run) == two
    add_row("processes of one run, clocks two hours apart", bitwise=True, code=0)
