"""Cases 10 and 11: a supervised run that is killed over and over comes out as the unbroken one; one that crashes at the
same step again and again is given up with a sentence."""

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
from tests.faults import bench

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

TIMES, RANKS = 6, 2


class Crash:
    """A hook that ends its process at a step, as code of the user's does."""

    def __init__(self, step: int, how: str):
        self._step, self._how = step, how

    def run(self, trainer: Any, state: Any, step: int) -> None:
        if step == self._step:
            if self._how == "raise":
                raise KeyError("imagee")
            os.kill(os.getpid(), signal.SIGSEGV)


def supervise(config: str, run: Path, *options: str, **settings: Any) -> bench.Job:
    return bench.Job("supervise", *options, "--", "train", config, f"--workdir={run}", **settings)


def ranks(job: bench.Job) -> list[int]:
    """The training processes that live, by rank; none while not all of them are there."""
    pids = [job.rank(index) for index in range(RANKS)]
    return [] if job.process.pid in pids else pids


def steps_of(run: Path, attempt: int) -> int:
    """How many steps an attempt has done, of those that no later one did again."""
    return list(bench.attempts(run).values()).count(attempt) if bench.losses(run) else 0


def test_kills_over_and_over_leave_the_unbroken_run(two, tmp_path, case):
    run, kills, choice, waits = tmp_path / "run", tmp_path / "kills", random.Random(10), []
    config = bench.config(tmp_path / "config", pause=0.05, mesh__fsdp=2)
    with supervise(config, run, f"--processes={RANKS}", "--devices-per-process=1", **{KILLS: str(kills)}) as job:
        killed = None
        for attempt in range(1, TIMES + 1):
            pids = job.until(lambda: ranks(job))
            job.until(lambda number=attempt: steps_of(run, number))
            if killed is not None:
                waits.append(time.monotonic() - killed)
            wanted = choice.randrange(2, 6)
            job.until(lambda number=attempt, n=wanted: steps_of(run, number) >= n)
            victim = choice.choice(pids)
            kills.write_text(kills.read_text() + f"{victim}\n" if kills.exists() else f"{victim}\n")
            bench.kill(victim)
            killed = time.monotonic()
            job.until(lambda number=attempt: job.output.count("Restart ") == number)
        assert job.end() == 0, job.output
        assert job.output.count(", from outside (") == TIMES
        assert job.pids() == []
    assert bench.outcome(run) == two
    assert sorted(bench.losses(run)) == list(range(1, bench.STEPS + 1))
    kinds = {name: goodput.Time() for name in goodput.KINDS}
    for attempts in goodput.sums(goodput.read(run / "goodput.jsonl")).values():
        for name, spent in attempts.items():
            kinds[name].seconds += spent.seconds
            kinds[name].steps += spent.steps
    assert kinds["step"].steps == bench.STEPS
    assert kinds["lost"].steps > 0 and kinds["down"].seconds > TIMES
    told = runs.convoy("goodput", str(run)).stdout
    assert f"{bench.STEPS} steps in {TIMES + 1} attempts" in told
    share = told.partition("goodput ")[2].partition(" ")[0]
    what = f"{TIMES} kills of a supervised run, goodput {share}"
    case(10, what, recovered_s=max(waits), lost=kinds["lost"].steps, bitwise=True, code=0)


def test_a_crash_at_the_same_step_is_given_up_after_three_times(tmp_path, case):
    run = tmp_path / "run"
    hook = {"crash": {"target": "tests.faults.supervisor_test.Crash", "every": "1 step", "step": 3, "how": "signal"}}
    with supervise(bench.config(tmp_path / "config", hooks=hook), run) as job:
        assert job.end() == 43, job.output
        took = time.monotonic() - job.started
        (last,) = [line for line in job.output.splitlines() if "failed identically" in line]
        assert last.startswith(
            "convoy supervise: 3 attempts failed identically at step 3: killed by SIGSEGV; no new checkpoint was saved "
            "between them (none was saved). A restart would repeat the failure."
        )
        assert job.output.count("Restart ") == 2
        assert job.pids() == []
    status = bench.status(run)
    assert (status["attempt"], status["state"], status["exit_code"]) == (3, "failed", 43)
    assert last == f"convoy supervise: {status['reason']}"
    case(11, "a crash at the same step three times: given up", detected_s=took, code=43)


def test_an_error_of_the_users_is_not_tried_again(tmp_path):
    run = tmp_path / "run"
    hook = {"crash": {"target": "tests.faults.supervisor_test.Crash", "every": "1 step", "step": 3, "how": "raise"}}
    with supervise(bench.config(tmp_path / "config", hooks=hook), run) as job:
        assert job.end() == 1, job.output
        assert job.output.count("KeyError: 'imagee'") == 1
        assert "Restart" not in job.output
    assert bench.status(run)["attempt"] == 1


def test_a_supervisor_asked_to_stop_leaves_a_saved_run_and_starts_nothing(tmp_path, one):
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05)
    with supervise(config, run) as job:
        job.until_step(run, 7)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.end() == 42, job.output
        assert "Restart" not in job.output
        assert job.pids() == []
    status = bench.status(run)
    assert (status["state"], status["exit_code"], status["attempt"]) == ("preempted", 42, 1)
    assert max(bench.saved(run)) == status["step"] >= 7
    with supervise(config, run) as job:
        assert job.end() == 0, job.output
    assert bench.outcome(run) == one
