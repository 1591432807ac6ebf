"""Supervised runs: repeated kills do not change the result, and repeated crashes at one step end the run."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kill_storm
from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

KILLS, SEED = 6, 5  # which hit each phase, the first process, the second, and both


class Crash:
    """A hook that ends its process at a step, as faulty user code does."""

    def __init__(self, step: int, how: str):
        self._step, self._how = step, how

    def run(self, trainer: Any, state: Any, step: int) -> None:
        if step == self._step:
            if self._how == "raise":
                raise KeyError("imagee")
            os.kill(os.getpid(), signal.SIGSEGV)


def supervise(config: str, run: Path, *options: str, **settings: Any) -> harness.Job:
    shown = "--config.log.progress=none"  # only the supervisor and errors
    return harness.Job("supervise", *options, "--", "train", config, f"--workdir={run}", shown, **settings)


@pytest.mark.case("repeated kills under a supervisor")
def test_random_kills_in_each_phase_under_supervise_are_bitwise_equal(tmp_path, monkeypatch, add_row):
    """The kill storm of the benchmarks; it hits a start, a restore, steps, saves and the ends on 2 and on 1 process."""
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", **runs.COMPILING}.items():  # all runs that are compared
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kill_storm, "start", harness.start)  # forks
    result = kill_storm.compare(tmp_path, KILLS, seed=SEED, processes=(2, 1), variant="streams")
    assert result.differences == []
    assert result.phases.keys() >= {*kill_storm.PHASES}, result.phases
    output = (tmp_path / "output.txt").read_text()
    assert output.count(", from outside (") == result.phases.total(), output
    assert f" steps in {result.attempts} attempts" in result.goodput
    add_row(
        f"{KILLS} kills at random moments, a mixture with a stream, 2 processes and then 1",
        lost=result.lost,
        bitwise=True,
        code=result.code,
    )


@pytest.mark.case("a crash at the same step")
def test_supervise_stops_after_three_crashes_at_the_same_step(tmp_path, add_row):
    run = tmp_path / "run"
    hook = {"crash": {"target": "tests.faults.supervisor_test.Crash", "every": "1 step", "step": 3, "how": "signal"}}
    with supervise(harness.config(tmp_path / "config", hooks=hook), run) as job:
        assert job.end() == 43, job.output
        took = time.monotonic() - job.started
        (last,) = [line for line in job.output.splitlines() if "failed identically" in line]
        assert last.startswith(
            "convoy supervise: 3 attempts failed identically at step 3: killed by SIGSEGV; no new checkpoint was saved "
            "between them (none was saved). A restart would repeat the failure."
        )
        assert job.output.count("Restart ") == 2
        assert job.left() == []
    status = harness.status(run)
    assert (status["attempt"], status["state"], status["exit_code"]) == (3, "failed", 43)
    assert last == f"convoy supervise: {status['reason']}"
    add_row("three crashes at the same step", detected_s=took, code=43)


def test_supervise_does_not_retry_a_user_error(tmp_path):
    run = tmp_path / "run"
    hook = {"crash": {"target": "tests.faults.supervisor_test.Crash", "every": "1 step", "step": 3, "how": "raise"}}
    with supervise(harness.config(tmp_path / "config", hooks=hook), run) as job:
        assert job.end() == 1, job.output
        assert job.output.count("KeyError: 'imagee'") == 1
        assert "Restart" not in job.output
    assert harness.status(run)["attempt"] == 1


def test_sigterm_to_supervise_saves_the_run_and_starts_nothing(tmp_path):
    run, config = tmp_path / "run", harness.config(tmp_path / "config", pause=0.05)
    with supervise(config, run) as job:
        job.until_step(run, 7)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.end() == 42, job.output
        assert "Restart" not in job.output
        assert job.left() == []
    status = harness.status(run)
    assert (status["state"], status["exit_code"], status["attempt"]) == ("preempted", 42, 1)
    assert max(harness.saved(run)) == status["step"] >= 7
