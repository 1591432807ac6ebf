"""Stop requests: SIGTERM from a scheduler, a second signal, and SIGINT."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cluster.exit_status import ExitStatus, is_retried
from tests import runs, zoo
from tests.faults import harness
from tests.faults.process_test import PAIR, resumed

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


class Slow:
    """Examples that are read slowly, or hang, while a file exists."""

    def __init__(self, file: str, seconds: float, n: int = 64, seed: int = 0):
        self._source, self._file, self._seconds = zoo.source(n, seed), Path(file), seconds

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if self._file.exists():
            Path(f"{self._file}.begun").touch()
            time.sleep(self._seconds)
        return self._source[index]


def slow(file: Path, seconds: float, **arguments: int) -> dict:
    return {"target": "tests.faults.preemption_test.Slow", "file": str(file), "seconds": seconds, **arguments}


def stopped(job: harness.Job, run: Path, begin: float) -> tuple[int, float]:
    """Waits for the end of a job after a stop request; returns its exit code and the seconds that it took."""
    code, seconds = job.end(), time.monotonic() - begin
    assert code == ExitStatus.RETRY, job.output
    assert seconds <= runs.limit(10), job.output
    assert "Traceback" not in job.output
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("preempted", 42)
    assert max(harness.saved(run)) == status["step"]
    assert job.left() == []
    return code, seconds


@pytest.mark.case("SIGTERM")
@pytest.mark.parametrize("whom", ["one", "all"])
def test_sigterm_saves_and_resume_is_bitwise_equal(whom, tmp_path, two, add_row):
    # In a directory whose name Orbax takes as a pattern, and which is not UTF-8.
    run, config = tmp_path / "lr=[0.1]\udcff", harness.config(tmp_path / "config", pause=0.05, **PAIR)
    with harness.Job("train", config, f"--workdir={run}", processes=2) as job:
        job.until_step(run, 12)
        begin = time.monotonic()
        if whom == "one":
            job.signal(1, signal.SIGTERM)
        else:
            job.process.send_signal(signal.SIGTERM)  # the launcher passes it on
        code, seconds = stopped(job, run, begin)
    row = resumed(config, run, two)
    assert row["lost"] == 0
    add_row(f"SIGTERM to {whom}", detected_s=seconds, code=code, **row)


@pytest.mark.case("SIGTERM")
@pytest.mark.parametrize("what", ["input", "evaluation"])
def test_sigterm_interrupts_slow_input_and_long_evaluation(what, tmp_path, two, add_row):
    """The evaluations differ from those of the undisturbed run, which does not change training."""
    run, file = tmp_path / "run", tmp_path / "slow"
    evaluation = {"data": slow(file, 0.2, n=320, seed=9), "every": "10 steps"}
    changes = {"data": slow(file, 600.0)} if what == "input" else {"evaluations": {"long": evaluation}}
    config = harness.config(tmp_path / "config", pause=0.05, **PAIR, **changes)
    with harness.Job("train", config, f"--workdir={run}", processes=2) as job:
        job.until_step(run, 12)
        file.touch()
        job.until(Path(f"{file}.begun").exists)
        time.sleep(2)  # until all prefetched batches are used
        code, seconds = stopped(job, run, job.signal(1, signal.SIGTERM))
    file.unlink()
    row = resumed(config, run, two)
    assert row["lost"] == 0
    add_row(f"SIGTERM to one in {what}", detected_s=seconds, code=code, **row)


class Sleepy:
    """A hook that hangs once a file exists."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        if self._file.exists():
            Path(f"{self._file}.begun").touch()
            time.sleep(3600)


@pytest.mark.case("a second signal")
def test_second_sigterm_ends_all_processes_at_once(tmp_path, two, add_row):
    run, file = tmp_path / "run", tmp_path / "sleepy"
    hooks = {"sleepy": {"target": "tests.faults.preemption_test.Sleepy", "file": str(file), "every": "1 step"}}
    config = harness.config(tmp_path / "config", pause=0.05, hooks=hooks, **PAIR)
    with harness.Job("train", config, f"--workdir={run}", processes=2) as job:
        job.until_step(run, 12)
        file.touch()
        job.until(Path(f"{file}.begun").exists)
        job.process.send_signal(signal.SIGTERM)
        time.sleep(2)
        assert job.process.poll() is None
        begin = time.monotonic()
        job.process.send_signal(signal.SIGTERM)
        code, seconds = job.end(), time.monotonic() - begin
        assert code == ExitStatus.RETRY, job.output
        assert seconds <= runs.limit(10)
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("failed", 42)
    assert status["reason"].startswith("a second signal ended this process at once")
    file.unlink()
    add_row("a second SIGTERM", detected_s=seconds, code=code, **resumed(config, run, two))


@pytest.mark.case("a second signal")
def test_sigkill_three_seconds_after_sigterm_leaves_no_partial_checkpoint(tmp_path, two, add_row):
    run, config = tmp_path / "run", harness.config(tmp_path / "config", pause=0.05, **PAIR)
    with harness.Job("train", config, f"--workdir={run}", processes=2) as job:
        job.until_step(run, 12)
        pids = [job.pid_of(0), job.pid_of(1)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        time.sleep(3)
        begin = time.monotonic()
        for pid in pids:
            harness.kill(pid)
        code, seconds = job.end(), time.monotonic() - begin
        assert is_retried(code), job.output
        assert seconds <= runs.limit(10)
    assert runs.status(run)["exit_code"] in (ExitStatus.RETRY, code)
    add_row("SIGTERM, and SIGKILL 3 s later", detected_s=seconds, code=code, **resumed(config, run, two))


@pytest.mark.case("SIGINT")
def test_sigint_saves_and_prints_a_summary_without_stacks(tmp_path, two, add_row):
    run = tmp_path / "run"
    config = harness.config(tmp_path / "config", pause=0.05, log__progress="lines", **PAIR)
    with harness.Job("train", config, f"--workdir={run}", processes=2) as job:
        job.until_step(run, 12)
        begin = time.monotonic()
        job.process.send_signal(signal.SIGINT)
        code, seconds = job.end(), time.monotonic() - begin
        output = job.output
    assert code == ExitStatus.INTERRUPTED, output
    assert seconds <= runs.limit(10)
    assert "Traceback" not in output and "Check failure" not in output and "*** " not in output
    step = runs.status(run)["step"]
    assert f"zoo: interrupted at step {step}/60" in output
    assert output.splitlines()[-1].endswith(f"asked to stop; the state of step {step}/60 is saved in {run}.")
    assert output.count("asked to stop; the state of") == 1
    row = resumed(config, run, two)
    assert row["lost"] == 0
    add_row("SIGINT", detected_s=seconds, code=code, **row)


SWEEP = """
import sys
import engine

for name in ("first", "second"):
    try:
        engine.train(sys.argv[1], workdir=f"{sys.argv[2]}/{name}")
    except Exception as error:
        print("next after", error)
"""


@pytest.mark.case("SIGTERM")
def test_sigterm_ends_a_loop_of_runs_that_catches_every_exception(tmp_path, add_row):
    config = harness.config(tmp_path / "config", pause=0.05).removeprefix("--config=")
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, config, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=runs.environment(**runs.COMPILING),
    )
    try:
        deadline = time.monotonic() + runs.limit(60)
        while 3 not in harness.losses(tmp_path / "first") and time.monotonic() < deadline:
            time.sleep(0.02)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(runs.limit(30)) == ExitStatus.RETRY
        seconds = time.monotonic() - begin
    finally:
        process.kill()
        output, _ = process.communicate()
    assert b"next after" not in output and not (tmp_path / "second").exists()
    status = runs.status(tmp_path / "first")
    assert (status["state"], status["exit_code"]) == ("preempted", 42)
    add_row("SIGTERM to a loop of runs in Python", detected_s=seconds, code=42)
