"""Stop requests: SIGTERM from a scheduler, a second signal, and SIGINT."""

import dataclasses
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.cluster.exit_status import ExitStatus, is_retried
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

PAIR: dict[str, Any] = {"mesh__fsdp": 2}


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


@dataclasses.dataclass
class Stopped:
    """How a job of two processes ended after a stop request."""

    code: int
    seconds: float  # from the last signal to the end
    output: str
    status: dict[str, Any]

    @classmethod
    def of(cls, job: harness.Job, run: Path, begin: float) -> "Stopped":
        """Waits for the end of a job; `begin` is the monotonic time of the last signal."""
        code, seconds = job.end(), time.monotonic() - begin
        return cls(code, seconds, job.output, runs.status(run))


@pytest.fixture(scope="module")
def stops(
    tmp_path_factory: pytest.TempPathFactory, two: harness.Outcome, two_run: Path
) -> dict[str, tuple[Stopped, dict]]:
    """A run that is asked to stop in six ways, one after the other; how it ended, and columns of each resume.

    Of the undisturbed run it lacks only the evaluation `long`, which does not change training.
    """
    # In a directory whose name Orbax takes as a pattern, and which is not UTF-8.
    folder, name, ended = tmp_path_factory.mktemp("stops"), "lr=[0.1]\udcff", {}
    files = {name: folder / name for name in ("input", "evaluation", "hook")}
    long = {"data": slow(files["evaluation"], 0.2, n=320, seed=9), "every": "5 steps"}
    hook = {"target": "tests.faults.preemption_test.Sleepy", "file": str(files["hook"]), "every": "1 step"}
    settings = {"data": slow(files["input"], 600.0), "evaluations__long": long, "hooks": {"sleepy": hook}}
    faulty = harness.FaultyRun(folder, name, log__progress="lines", **settings, **PAIR, **harness.EVALUATED)
    with faulty.start(steps=3) as job:
        begin = time.monotonic()
        job.process.send_signal(signal.SIGTERM)  # the launcher passes it on
        ended["all"] = saved_and_stopped(job, faulty.run, begin)
    with faulty.start(steps=3) as job:
        begin = time.monotonic()
        job.process.send_signal(signal.SIGINT)
        ended["SIGINT"] = Stopped.of(job, faulty.run, begin)
    with faulty.start(steps=3) as job:
        pids = [job.pid_of(0), job.pid_of(1)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        time.sleep(3)
        begin = time.monotonic()
        for pid in pids:
            harness.kill(pid)
        ended["SIGKILL"] = Stopped.of(job, faulty.run, begin)
    for name, file in files.items():
        with faulty.start(steps=3) as job:
            ended[name] = stopped_in(name, file, job, faulty.run)
    faulty.finish(two)
    for metric in ("heldout/loss", "heldout/accuracy"):
        assert runs.rows(faulty.run, metric) == runs.rows(two_run, metric)
    return {name: (ended[name], row) for name, row in zip(ended, faulty.rows, strict=True)}


def stopped_in(name: str, file: Path, job: harness.Job, run: Path) -> Stopped:
    """Asks a job to stop while its input, its evaluation or its hook takes long; returns how it ended."""
    file.touch()
    job.until(Path(f"{file}.begun").exists)
    time.sleep(2)  # until all prefetched batches are used
    if name == "hook":
        job.process.send_signal(signal.SIGTERM)
        time.sleep(2)
        assert job.process.poll() is None
        begin = time.monotonic()
        job.process.send_signal(signal.SIGTERM)
        ended = Stopped.of(job, run, begin)
    else:
        ended = saved_and_stopped(job, run, job.signal(1, signal.SIGTERM))
    file.unlink()
    return ended


def saved_and_stopped(job: harness.Job, run: Path, begin: float) -> Stopped:
    """Waits for the end of a job after a stop request that it obeys."""
    ended = Stopped.of(job, run, begin)
    assert ended.code == ExitStatus.RETRY, ended.output
    assert ended.seconds <= runs.limit(10), ended.output
    assert "Traceback" not in ended.output
    assert (ended.status["state"], ended.status["exit_code"]) == ("preempted", 42)
    assert max(harness.saved(run)) == ended.status["step"]
    assert "] Preempted: asked to stop" in ended.output.splitlines()[-1]
    assert f"; the state of step {ended.status['step']}/60 is saved in " in ended.output.splitlines()[-1]
    assert job.left() == []
    return ended


@pytest.mark.case("SIGTERM")
def test_sigterm_saves_and_resume_is_bitwise_equal(stops, add_row):
    ended, row = stops["all"]
    assert row["lost"] == 0
    add_row("SIGTERM to all", detected_s=ended.seconds, code=ended.code, **row)


@pytest.mark.case("SIGINT")
def test_sigint_saves_and_prints_a_summary_without_stacks(stops, add_row):
    ended, row = stops["SIGINT"]
    output, step = ended.output, ended.status["step"]
    assert ended.code == ExitStatus.INTERRUPTED, output
    assert ended.seconds <= runs.limit(10)
    assert "Traceback" not in output and "Check failure" not in output and "*** " not in output
    assert f"zoo: interrupted at step {step}/60" in output
    assert re.search(rf"asked to stop; the state of step {step}/60 is saved in \S+\.$", output.splitlines()[-1])
    assert output.count("asked to stop; the state of") == 1
    assert row["lost"] == 0
    add_row("SIGINT", detected_s=ended.seconds, code=ended.code, **row)


@pytest.mark.case("a second signal")
def test_sigkill_three_seconds_after_sigterm_leaves_no_partial_checkpoint(stops, add_row):
    ended, row = stops["SIGKILL"]
    assert is_retried(ended.code), ended.output
    assert ended.seconds <= runs.limit(10)
    assert ended.status["exit_code"] in (ExitStatus.RETRY, ended.code)
    # The exit code depends on whether the run ends within the 3 s.
    add_row("SIGTERM, and SIGKILL 3 s later", detected_s=ended.seconds, **row)


class Sleepy:
    """A hook that hangs once a file exists."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        if self._file.exists():
            Path(f"{self._file}.begun").touch()
            time.sleep(3600)


@pytest.mark.case("SIGTERM")
@pytest.mark.parametrize("what", ["input", "evaluation"])
def test_sigterm_interrupts_slow_input_and_long_evaluation(what, stops, add_row):
    ended, row = stops[what]
    assert row["lost"] == 0
    add_row(f"SIGTERM to one in {what}", detected_s=ended.seconds, code=ended.code, **row)


@pytest.mark.case("a second signal")
def test_second_sigterm_ends_all_processes_at_once(stops, add_row):
    ended, row = stops["hook"]
    assert ended.code == ExitStatus.RETRY, ended.output
    assert ended.seconds <= runs.limit(10)
    assert (ended.status["state"], ended.status["exit_code"]) == ("failed", 42)
    assert ended.status["reason"].startswith("a second signal ended this process at once")
    add_row("a second SIGTERM", detected_s=ended.seconds, code=ended.code, **row)


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
    words = [sys.executable, "-c", SWEEP, config, str(tmp_path)]
    process = runs.begin(words, None, runs.environment(**runs.COMPILING), apart=False)
    try:
        runs.wait_for(lambda: 3 in harness.losses(tmp_path / "first"), process)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == ExitStatus.RETRY
        seconds = time.monotonic() - begin
    finally:
        process.kill()
        output, _ = process.communicate()
    assert "next after" not in output and not (tmp_path / "second").exists()
    status = runs.status(tmp_path / "first")
    assert (status["state"], status["exit_code"]) == ("preempted", 42)
    add_row("SIGTERM to a loop of runs in Python", detected_s=seconds, code=42)
