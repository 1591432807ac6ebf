"""Cases 1 to 6 and 12: a process that is killed, stopped, stuck or in error, and what becomes of the others."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cluster.exit_status import ExitStatus, is_retried
from tests import runs, zoo
from tests.faults import bench

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

PAIR = {"mesh__fsdp": 2}


def is_my_turn(file: Path) -> bool:
    """Whether this rank is the one that the file names; it is renamed then, so this is true once."""
    try:
        if file.read_text() != os.environ.get("CONVOY_PROCESS_ID"):
            return False
        file.rename(f"{file}.done")
    except FileNotFoundError:  # not named yet, or another thread that reads examples was faster
        return False
    return True


class Blocking:
    """The examples of the zoo, of which one is never read."""

    def __init__(self, file: str):
        self._source, self._file = zoo.source(), Path(file)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if is_my_turn(self._file):
            time.sleep(3600)
        return self._source[index]


class Eating:
    """A hook that takes more and more memory."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        taken = []
        while self._file.exists() and self._file.read_text() == os.environ.get("CONVOY_PROCESS_ID"):
            taken.append(bytearray(50 << 20))
            Path(f"{self._file}.done").touch()


class Raising:
    """A hook with a mistake."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        if is_my_turn(self._file):
            raise KeyError("imagee")


def turn(job: bench.Job, file: Path, rank: int) -> float:
    """Names the rank that does wrong; returns the monotonic time at which it begins."""
    beside = file.with_suffix(".new")
    beside.write_text(str(rank))
    beside.rename(file)
    job.until(lambda: Path(f"{file}.done").exists())
    return time.monotonic()


def resumed(config: str, run: Path, whole: bench.Outcome, ranks: int = 2) -> dict:
    """Starts a run again, to its end; returns columns of its row after the comparison with the unbroken run."""
    begin, before, attempt = time.monotonic(), max(bench.losses(run)), runs.status(run)["attempt"]
    with bench.Job("train", config, f"--workdir={run}", ranks=ranks) as job:
        job.until(lambda: attempt + 1 in bench.attempts(run).values())
        recovered = time.monotonic() - begin
        assert job.end() == 0, job.output
    first = min(step for step, number in bench.attempts(run).items() if number > attempt)
    found = bench.outcome(run)
    assert found == whole
    assert before - first + 1 < 2 * bench.SAVE_EVERY  # the newest save was perhaps not whole yet
    return {"recovered_s": recovered, "lost": max(0, before - first + 1), "bitwise": True}


@pytest.mark.parametrize(
    ("number", "ranks", "what"),
    [(1, [1], "SIGKILL of a worker"), (2, [0], "SIGKILL of the coordinator"), (3, [0, 1], "SIGKILL of all")],
)
def test_a_kill_ends_all_and_the_run_goes_on_bit_for_bit(number, ranks, what, tmp_path, two, case):
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        pids = [job.rank(rank) for rank in ranks]
        begin = time.monotonic()
        for pid in pids:
            bench.kill(pid)
        code, detected = job.end(), time.monotonic() - begin
        assert job.pids() == []
        status = runs.status(run)
        assert (code, is_retried(code)) == (137, True), job.output
        assert detected <= 15
        assert (status["state"], status["exit_code"]) == ("failed", 137)
        assert status["reason"].startswith(f"process {ranks[0] if len(ranks) == 1 else ''}")
    row = resumed(config, run, two)
    case(number, what, detected_s=detected, code=code, **row)


def test_started_by_hand_the_others_of_a_dead_one_end_too_and_name_it(tmp_path, case):
    """No launcher is there to kill anybody."""
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05, **PAIR)
    with by_hand("train", config, f"--workdir={run}") as ranks:
        while len(bench.losses(run)) < 8:
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.02)
        ranks[1].kill()
        begin = time.monotonic()
        output, _ = ranks[0].communicate(timeout=60)
        detected = time.monotonic() - begin
        assert ranks[0].returncode == ExitStatus.RETRY, output
    assert detected <= 15
    told = output.splitlines()[-1]
    assert told.startswith("LostPeer: ") and told.endswith("the same command resumes from the newest checkpoint.")
    assert (runs.status(run)["state"], runs.status(run)["exit_code"]) == ("failed", 42)
    case(1, "SIGKILL of a worker, no launcher", detected_s=detected, code=42)


@contextlib.contextmanager
def by_hand(*words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts two ranks that are told by variables who they are; none is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ranks = [
        runs.start(*words, CONVOY_COORDINATOR=address, CONVOY_NUM_PROCESSES="2", CONVOY_PROCESS_ID=str(rank))
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_a_stopped_process_is_noticed_and_a_pause_of_five_seconds_is_none(tmp_path, two, case):
    run, config = tmp_path / "run", bench.config(tmp_path / "config", pause=0.05, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 7)
        job.signal(1, signal.SIGSTOP)
        time.sleep(5)
        job.signal(1, signal.SIGCONT)
        job.until_step(run, 17)
        assert set(bench.attempts(run).values()) == {1}
        begin = job.signal(1, signal.SIGSTOP)
        code, detected = job.end(), time.monotonic() - begin
        assert code == ExitStatus.RETRY, job.output
        assert "LostPeer: process 1 is gone: no heartbeat for 10 s" in job.output.splitlines()[-1]
        assert detected <= 25
    assert (runs.status(run)["state"], runs.status(run)["exit_code"]) == ("failed", 42)
    row = resumed(config, run, two)
    case(4, "SIGSTOP for good; 5 s of it are tolerated", detected_s=detected, code=code, **row)


def test_a_main_thread_that_waits_for_ever_is_named_with_all_stacks(tmp_path, two, case):
    """The other rank waits for it before a hook, which may itself take 10 times as long; a step may not."""
    run, file = tmp_path / "run", tmp_path / "fault"
    settings = {"resilience__hang": "4 seconds", "checkpoint__every": "7 steps", **PAIR}  # not at the step that hangs
    source = {"target": "tests.faults.process_test.Blocking", "file": str(file)}
    config = bench.config(tmp_path / "config", pause=0.05, data=source, **settings)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        begin = turn(job, file, 1)
        code, detected = job.end(), time.monotonic() - begin
        output = job.output
        assert code == ExitStatus.RETRY, output
        assert detected <= 20
        assert job.pids() == []
    told = output.splitlines()[-1]
    assert "Hang: no step has finished for " in told
    assert "Process 1 is behind: process 1 has dispatched " in told
    assert "process_test.py:" in told and " in __getitem__" in told
    for rank in range(2):
        assert f"[{rank}] Main thread, innermost call last:" in output
        assert "Thread" in (run / f"stacks/attempt-1-process-{rank}.txt").read_text()
    assert "in __getitem__" in (run / "stacks/attempt-1-process-1.txt").read_text()
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("failed", 42)
    assert "Process 1 is behind" in status["reason"]
    row = resumed(config, run, two)
    case(5, "a source that never returns on one rank", detected_s=detected, code=code, **row)


LIMIT = 4 << 30  # bytes, for two ranks, their launcher and what one takes beyond


@pytest.fixture
def limited(tmp_path):
    """Words that start a program in a control group with little memory; none where no group can be made here."""
    group = Path("/sys/fs/cgroup/memory") / f"convoy-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        yield ()
        return
    yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    end = time.monotonic() + 30
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    group.rmdir()


def test_a_process_that_the_kernel_kills_for_memory_is_retried_and_the_message_says_so(tmp_path, two, case, limited):
    run, file = tmp_path / "run", tmp_path / "fault"
    hook = {"target": "tests.faults.process_test.Eating", "file": str(file), "every": "1 step"}
    config = bench.config(tmp_path / "config", pause=0.05, hooks={"eating": hook}, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2, prefix=limited) as job:
        job.until_step(run, 12)
        begin = turn(job, file, 1) if limited else job.signal(1, signal.SIGKILL)
        code, detected = job.end(), time.monotonic() - begin
        told = job.output.splitlines()[-1]
    assert (code, is_retried(code)) == (137, True)
    says = "the kernel reports that memory ran out" if limited else "if nobody sent the signal, memory ran out"
    assert "process 1 ended first, with 137 (" in told and says in told
    assert says in runs.status(run)["reason"]
    file.unlink(missing_ok=True)
    row = resumed(config, run, two)
    note = {} if limited else {"note": "no control group for memory can be made here; SIGKILL by hand"}
    case(12, "the kernel kills a rank for memory", detected_s=detected, code=code, **row, **note)


def test_an_exception_on_one_rank_ends_all_with_its_traceback_last_and_once(tmp_path, two, case):
    run, file = tmp_path / "run", tmp_path / "fault"
    hook = {"target": "tests.faults.process_test.Raising", "file": str(file), "every": "1 step"}
    config = bench.config(tmp_path / "config", pause=0.05, hooks={"raising": hook}, **PAIR)
    with bench.Job("train", config, f"--workdir={run}", ranks=2) as job:
        job.until_step(run, 12)
        begin = turn(job, file, 1)
        code, detected = job.end(), time.monotonic() - begin
        lines = job.output.splitlines()
    assert code == ExitStatus.USER_ERROR
    assert detected <= 10
    assert lines[-2] == "[1] KeyError: 'imagee'"
    assert lines[-1].startswith("[1] raised in process 1 of 2, after step 1")
    assert sum("KeyError: 'imagee'" in line for line in lines) == 1
    assert sum("Traceback" in line for line in lines) == 1
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["reason"] == "process 1 ended this run: KeyError: 'imagee'"
    row = resumed(config, run, two)
    case(6, "an exception of the user's on one rank", detected_s=detected, code=code, **row)
