"""Supervised runs: repeated kills do not change the result, and repeated crashes at one step end the run."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from engine.launch.supervise import KILLS
from engine.run import goodput
from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

TIMES, PROCESSES = 6, 2


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
    return harness.Job("supervise", *options, "--", "train", config, f"--workdir={run}", **settings)


def training_pids(job: harness.Job) -> list[int]:
    """The pids of the training processes by index; empty until all of them have started."""
    pids = [job.pid_of(index) for index in range(PROCESSES)]
    return [] if job.process.pid in pids else pids


def steps_of(run: Path, attempt: int) -> int:
    """The number of steps of an attempt that no later attempt computed again."""
    return list(harness.attempts(run).values()).count(attempt) if harness.losses(run) else 0


@pytest.mark.case("repeated kills under a supervisor")
def test_repeated_kills_under_supervise_are_bitwise_equal(two, tmp_path, add_row):
    run, kills, choice, waits = tmp_path / "run", tmp_path / "kills", random.Random(10), []
    config = harness.config(tmp_path / "config", pause=0.05, mesh__fsdp=2)
    with supervise(config, run, f"--processes={PROCESSES}", "--devices-per-process=1", **{KILLS: str(kills)}) as job:
        killed = None
        for attempt in range(1, TIMES + 1):
            pids = job.until(lambda: training_pids(job))
            job.until(lambda number=attempt: steps_of(run, number))
            if killed is not None:
                waits.append(time.monotonic() - killed)
            wanted = choice.randrange(2, 6)
            job.until(lambda number=attempt, n=wanted: steps_of(run, number) >= n)
            victim = choice.choice(pids)
            kills.write_text(kills.read_text() + f"{victim}\n" if kills.exists() else f"{victim}\n")
            harness.kill(victim)
            killed = time.monotonic()
            job.until(lambda number=attempt: job.output.count("Restart ") == number)
        assert job.end() == 0, job.output
        assert job.output.count(", from outside (") == TIMES
        assert job.pids() == []
    assert harness.outcome(run) == two
    assert sorted(harness.losses(run)) == list(range(1, harness.STEPS + 1))
    kinds = {name: goodput.Time() for name in goodput.KINDS}
    for attempts in goodput.sums(goodput.read(run / "goodput.jsonl")).values():
        for name, spent in attempts.items():
            kinds[name].seconds += spent.seconds
            kinds[name].steps += spent.steps
    assert kinds["step"].steps == harness.STEPS
    assert kinds["lost"].steps > 0 and kinds["down"].seconds > TIMES
    printed = runs.convoy("goodput", str(run)).stdout
    assert f"{harness.STEPS} steps in {TIMES + 1} attempts" in printed
    share = printed.partition("goodput ")[2].partition(" ")[0]
    what = f"{TIMES} kills of a supervised run, goodput {share}"
    add_row(what, recovered_s=max(waits), lost=kinds["lost"].steps, bitwise=True, code=0)


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
        assert job.pids() == []
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


def test_sigterm_to_supervise_saves_the_run_and_starts_nothing(tmp_path, one):
    run, config = tmp_path / "run", harness.config(tmp_path / "config", pause=0.05)
    with supervise(config, run) as job:
        job.until_step(run, 7)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.end() == 42, job.output
        assert "Restart" not in job.output
        assert job.pids() == []
    status = harness.status(run)
    assert (status["state"], status["exit_code"], status["attempt"]) == ("preempted", 42, 1)
    assert max(harness.saved(run)) == status["step"] >= 7
    with supervise(config, run) as job:
        assert job.end() == 0, job.output
    assert harness.outcome(run) == one
