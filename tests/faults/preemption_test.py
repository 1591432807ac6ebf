"""Cases 7 to 9: being asked to stop, once and twice, by a scheduler and by a person."""

import os
import signal
import time
from pathlib import Path

import pytest

from engine.cluster.exit_status import ExitStatus, is_retried
from tests import runs, zoo
from tests.faults import bench
from tests.faults.process_test import PAIR, resumed

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


class Slow:
    """Examples that come slowly, or not at all, while a file is there; it is renamed when that begins."""

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


def stopped(job: bench.Job, run: Path, begin: float) -> tuple[int, float]:
    """Waits for the end of a job that was asked to stop; returns its code and how long that took."""
    code, seconds = job.end(), time.monotonic() - begin
    assert code == ExitStatus.RETRY, job.output
    assert seconds <= 10, job.output
    assert "Traceback" not in job.output
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("preempted", 42)
    assert max(bench.saved(run)) == status["step"]
    assert job.pids() == []
    return code, seconds


@pytest.mark.parametrize("whom", ["one", "all"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(whom, tmp_path, two, case):
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        begin = time.monotonic()
        if whom == "one":
            job.signal(1, signal.SIGTERM)
        else:
            job.process.send_signal(signal.SIGTERM)  # the launcher passes it on
        code, seconds = stopped(job, run, begin)
    row = resumed(config, run, two)
    assert row["lost"] == 0
    case(7, f"SIGTERM to {whom}", detected_s=seconds, code=code, **row)


@pytest.mark.parametrize("what", ["input", "evaluation"])
def test_a_long_wait_for_data_and_an_evaluation_of_many_batches_are_given_up(what, tmp_path, two, case):
    """Evaluations of the unbroken run are not those of this one, which does not alter its training."""
    run, file = tmp_path / "run", tmp_path / "slow"
    evaluation = {"data": slow(file, 0.2, n=320, seed=9), "every": "10 steps"}
    changes = {"data": slow(file, 600.0)} if what == "input" else {"evaluations": {"long": evaluation}}
    config = bench.config(tmp_path / "config", pause=0.05, **PAIR, **changes)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        file.touch()
        job.until(Path(f"{file}.begun").exists)
        time.sleep(2)  # until every batch that was made ahead is used up
        code, seconds = stopped(job, run, job.signal(1, signal.SIGTERM))
    file.unlink()
    row = resumed(config, run, two)
    assert row["lost"] == 0
    case(7, f"SIGTERM to one in {what}", detected_s=seconds, code=code, **row)


class Sleepy:
    """A hook that does not come to its end, once a file is there."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        if self._file.exists():
            Path(f"{self._file}.begun").touch()
            time.sleep(3600)


def test_a_second_signal_ends_all_at_once_in_whatever_they_are(tmp_path, two, case):
    run, file = tmp_path / "run", tmp_path / "sleepy"
    hooks = {"sleepy": {"target": "tests.faults.preemption_test.Sleepy", "file": str(file), "every": "1 step"}}
    config = bench.config(tmp_path / "config", pause=0.05, hooks=hooks, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
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
        assert seconds <= 10
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("failed", 42)
    assert status["reason"].startswith("a second signal ended this process at once")
    file.unlink()
    case(8, "a second SIGTERM", detected_s=seconds, code=code, **resumed(config, run, two))


def test_a_grace_of_three_seconds_leaves_no_torn_checkpoint(tmp_path, two, case):
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        pids = [job.rank(0), job.rank(1)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        time.sleep(3)
        begin = time.monotonic()
        for pid in pids:
            bench.kill(pid)
        code, seconds = job.end(), time.monotonic() - begin
        assert is_retried(code), job.output
        assert seconds <= 10
    assert runs.status(run)["exit_code"] in (ExitStatus.RETRY, code)
    case(8, "SIGTERM, and SIGKILL 3 s later", detected_s=seconds, code=code, **resumed(config, run, two))


def test_ctrl_c_is_a_clean_stop_with_a_summary_and_no_stacks(tmp_path, two, case):
    run = tmp_path / "run"
    config = bench.config(tmp_path / "config", pause=0.05, log__progress="lines", **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        begin = time.monotonic()
        job.process.send_signal(signal.SIGINT)
        code, seconds = job.end(), time.monotonic() - begin
        output = job.output
    assert code == ExitStatus.INTERRUPTED, output
    assert seconds <= 10
    assert "Traceback" not in output and "Check failure" not in output and "*** " not in output
    step = runs.status(run)["step"]
    assert f"zoo: interrupted at step {step} of 60" in output
    assert output.splitlines()[-1].endswith(f"asked to stop; the state of step {step} of 60 is saved in {run}.")
    row = resumed(config, run, two)
    assert row["lost"] == 0
    case(9, "SIGINT", detected_s=seconds, code=code, **row)
