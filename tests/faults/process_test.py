"""A process that is killed, stopped, hangs or raises: how soon the others end, and whether a resume is equal."""

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import engine
from engine.cluster.exit_status import ExitStatus, is_retried
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

PAIR: dict[str, Any] = {"mesh__fsdp": 2}
HANGS = ("--config.resilience.hang=4 seconds", "--config.checkpoint.every=100 steps")


def takes_fault(file: Path) -> bool:
    """Returns True once, in the process whose index the file holds; renames the file."""
    try:
        if file.read_text() != os.environ.get("CONVOY_PROCESS_ID"):
            return False
        file.rename(f"{file}.done")
    except FileNotFoundError:  # no fault was started yet, or another thread took it
        return False
    return True


class Blocking:
    """The examples of tests/zoo.py; reading an example hangs in the process that the file names."""

    def __init__(self, file: str):
        self._source, self._file = zoo.source(), Path(file)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if takes_fault(self._file):
            time.sleep(3600)
        return self._source[index]


class LateReader:
    """The examples of tests/zoo.py; process 1 reads the first one of a batch, in a thread, 32 s late."""

    def __init__(self):
        self._source, self._first = zoo.source(), True

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if threading.current_thread() is not threading.main_thread() and self._first:
            self._first = False
            time.sleep(32 if os.environ.get("CONVOY_PROCESS_ID") == "1" else 0)
        return self._source[index]


class Eating:
    """A hook that allocates memory without end in the process that the file names."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        taken = []
        while self._file.exists() and self._file.read_text() == os.environ.get("CONVOY_PROCESS_ID"):
            taken.append(bytearray(50 << 20))
            Path(f"{self._file}.done").touch()


class Raising:
    """A hook that raises in the process that the file names."""

    def __init__(self, file: str):
        self._file = Path(file)

    def run(self, trainer, state, step: int) -> None:
        if takes_fault(self._file):
            raise KeyError("imagee")


def start_fault(job: harness.Job, file: Path, index: int) -> float:
    """Starts the fault in a training process; returns the monotonic time at which it began."""
    new = file.with_suffix(".new")
    new.write_text(str(index))
    new.rename(file)
    job.until(lambda: Path(f"{file}.done").exists())
    return time.monotonic()


@dataclasses.dataclass
class Ended:
    """How a job of two processes ended after a fault."""

    code: int
    detected_s: float  # from the fault to the end
    output: str
    left: list[int]  # processes that still live
    status: dict[str, Any]

    @classmethod
    def of(cls, job: harness.Job, run: Path, begin: float) -> "Ended":
        """Waits for the end of a job; `begin` is the monotonic time of the fault."""
        code, detected = job.end(), time.monotonic() - begin
        return cls(code, detected, job.output, job.left(), runs.status(run))


KILLS = {"SIGKILL of a worker": [1], "SIGKILL of the primary": [0], "SIGKILL of all": [0, 1]}


@dataclasses.dataclass
class Faults:
    """What happened to a run that suffered one fault after the other, and resumed from each."""

    run: Path
    named_s: float  # from the stop of a process that has not joined to the message that names it
    ended: dict[str, Ended]
    rows: dict[str, dict[str, Any]]  # columns of the resume from each fault
    limited: bool  # whether memory was limited


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory, two: harness.Outcome, late: harness.Job) -> Faults:
    """A run that ends by one fault after the other, the first of them a stopped process; bitwise equal at its end.

    The process of the run `late` is late meanwhile.
    """
    folder = tmp_path_factory.mktemp("faults")
    files = {name: folder / name for name in ("raising", "eating", "blocking")}
    settings = {
        "data": {"target": "tests.faults.process_test.Blocking", "file": str(files["blocking"])},
        "hooks": {
            name: {"target": f"tests.faults.process_test.{name.title()}", "file": str(files[name]), "every": "1 step"}
            for name in ("raising", "eating")
        },
        **PAIR,
    }
    named_s, stopped = stop_twice(folder, settings)
    faulty, ended = harness.FaultyRun(folder, **settings), {"SIGSTOP": stopped}
    for what, indices in KILLS.items():
        with faulty.start(steps=3) as job:
            pids = [job.pid_of(index) for index in indices]
            begin = time.monotonic()
            for pid in pids:
                harness.kill(pid)
            ended[what] = Ended.of(job, faulty.run, begin)
    # No save is due at the step that hangs. The other process waits before a hook, which may take 10 times as long.
    with faulty.start(*HANGS, steps=3) as job:
        ended["a hang"] = Ended.of(job, faulty.run, start_fault(job, files["blocking"], 1))
    with faulty.start(steps=3) as job:
        ended["an exception"] = Ended.of(job, faulty.run, start_fault(job, files["raising"], 1))
    with limited_memory() as first:
        if first:
            with faulty.start(steps=3, first=first) as job:
                ended["out of memory"] = Ended.of(job, faulty.run, start_fault(job, files["eating"], 1))
            files["eating"].unlink()
    faulty.finish(two)
    return Faults(faulty.run, named_s, ended, dict(zip(ended, faulty.rows, strict=True)), bool(first))


def stop_twice(folder: Path, settings: dict[str, Any]) -> tuple[float, Ended]:
    """Starts the run and stops a process, for good in the end; returns when it was named at first, and how it ended."""
    run, config = folder / "run", folder / "waiting.py"
    config.write_text(WAITING.format(folder=folder, settings=settings))
    with harness.Job("train", f"--config={config}", f"--workdir={run}", processes=2) as job:
        job.until((folder / "waits").exists)
        begin = job.signal(1, signal.SIGSTOP)  # before the processes have joined
        (folder / "joins").touch()
        pid = job.pid_of(1)
        job.until(lambda: f"convoy launch: process 1 (pid {pid}) has been stopped by a signal" in job.output)
        named_s = time.monotonic() - begin
        job.signal(1, signal.SIGCONT)
        job.until_step(run, 7)
        job.signal(1, signal.SIGSTOP)
        time.sleep(5)
        job.signal(1, signal.SIGCONT)
        job.until_step(run, 13)
        job.until(lambda: max(harness.saved(run), default=0) >= 10)
        assert set(harness.attempts(run).values()) == {1}
        assert job.output.count("has been stopped by a signal") == 1
        return named_s, Ended.of(job, run, job.signal(1, signal.SIGSTOP))


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("SIGKILL of a worker", marks=pytest.mark.case("a worker is killed")),
        pytest.param("SIGKILL of the primary", marks=pytest.mark.case("the primary is killed")),
        pytest.param("SIGKILL of all", marks=pytest.mark.case("all processes are killed")),
    ],
)
def test_sigkill_ends_all_processes_and_resume_is_bitwise_equal(what, faults, add_row):
    ended, indices = faults.ended[what], KILLS[what]
    assert ended.left == []
    assert (ended.code, is_retried(ended.code)) == (137, True), ended.output
    assert ended.detected_s <= runs.limit(15)
    assert (ended.status["state"], ended.status["exit_code"]) == ("failed", 137)
    assert ended.status["reason"].startswith(f"process {indices[0] if len(indices) == 1 else ''}")
    assert "convoy launch: process " in ended.output and " ended first, with 137 (killed by SIGKILL" in ended.output
    add_row(what, detected_s=ended.detected_s, code=ended.code, **faults.rows[what])


@pytest.mark.case("a worker is killed")
def test_without_a_launcher_a_dead_peer_ends_the_other_process(tmp_path, add_row):
    """Each process must end by itself, since no launcher kills it."""
    run, config = tmp_path / "run", harness.config(tmp_path / "config", pause=0.05, **PAIR)
    with without_launcher("train", config, f"--workdir={run}") as processes:
        while len(harness.losses(run)) < 8:
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.02)
        processes[1].kill()
        begin = time.monotonic()
        output, _ = processes[0].communicate(timeout=180)
        detected = time.monotonic() - begin
        assert processes[0].returncode == ExitStatus.RETRY, output
    assert detected <= runs.limit(25)
    last = output.splitlines()[-1]
    assert last.startswith("LostPeer: ") and last.endswith("the same command resumes from the newest checkpoint.")
    assert (runs.status(run)["state"], runs.status(run)["exit_code"]) == ("failed", 42)
    add_row("SIGKILL of a worker, no launcher", detected_s=detected, code=42)


@contextlib.contextmanager
def without_launcher(*words: str) -> Iterator[list[runs.Started]]:
    """Starts two training processes without a launcher, configured by variables; kills them at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        runs.start(*words, CONVOY_COORDINATOR=address, CONVOY_NUM_PROCESSES="2", CONVOY_PROCESS_ID=str(index))
        for index in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> Iterator[harness.Job]:
    """A run whose process 1 is 32 s late for the first step, which a process of copies begins with no collective."""
    folder = tmp_path_factory.mktemp("late")
    source = {"target": "tests.faults.process_test.LateReader"}
    config = harness.config(folder / "config", data=source, train__total="3 steps", evaluations={})
    with harness.Job("train", config, f"--workdir={folder / 'run'}", processes=2) as job:
        yield job


WAITING = """
import os
import time
from pathlib import Path

from tests import runs
from tests.faults import harness


def get_config():
    if os.environ.get("CONVOY_PROCESS_ID") == "1":
        Path("{folder}/waits").touch()
        while not Path("{folder}/joins").exists():
            time.sleep(0.02)
    return runs.config(**harness.completed(pause=0.05, **{settings}))
"""
"""A config that process 1 does not read, and so does not join the other, until a file exists."""


@pytest.mark.case("a process is stopped")
def test_stopped_process_is_detected_and_a_five_second_pause_is_tolerated(faults, add_row):
    ended = faults.ended["SIGSTOP"]
    assert faults.named_s <= runs.limit(15)
    assert ended.code == ExitStatus.RETRY, ended.output
    assert "LostPeer: process 1 is gone: no heartbeat for 12 s" in ended.output.splitlines()[-1]
    assert ended.output.count("has been stopped by a signal") == 2
    assert ended.detected_s <= runs.limit(40)
    assert (ended.status["state"], ended.status["exit_code"]) == ("failed", 42)
    row = {"detected_s": ended.detected_s, "code": ended.code, **faults.rows["SIGSTOP"]}
    add_row("SIGSTOP before the processes have joined: named, and the run continues with it", detected_s=faults.named_s)
    add_row("SIGSTOP for good; 5 s of it are tolerated", **row)


@pytest.mark.case("a process that comes late")
def test_process_that_is_late_for_the_first_collective_is_waited_for(late, add_row):
    """Gloo, which connects the CPUs of the processes, would wait 30 s. Alone, this test takes 40 s."""
    assert late.end() == 0, late.output
    assert time.monotonic() - late.started > 32
    add_row("a process reads its first batch 32 s after the other", code=0)


@pytest.mark.case("a data source hangs")
def test_hang_is_detected_and_reported_with_all_stacks(faults, add_row):
    ended, stacks = faults.ended["a hang"], faults.run / "stacks"
    output, attempt = ended.output, ended.status["attempt"]
    assert ended.code == ExitStatus.RETRY, output
    assert ended.detected_s <= runs.limit(20)
    assert ended.left == []
    last = output.splitlines()[-1]
    assert "Hang: no step has finished for " in last
    assert "Process 1 is behind: process 1 has dispatched " in last
    assert "process_test.py:" in last and " in __getitem__" in last
    for index in range(2):
        assert f"[{index}] Main thread, innermost call last:" in output
        assert "Thread" in (stacks / f"attempt-{attempt}-process-{index}.txt").read_text()
    assert "in __getitem__" in (stacks / f"attempt-{attempt}-process-1.txt").read_text()
    assert (ended.status["state"], ended.status["exit_code"]) == ("failed", 42)
    assert "Process 1 is behind" in ended.status["reason"]
    row = {"detected_s": ended.detected_s, "code": ended.code, **faults.rows["a hang"]}
    add_row("a data source that hangs in one process", **row)


def leave_the_loop(folder: str) -> None:
    """Trains with a loop of its own, which it leaves at step 5 for much longer than a step may take."""
    config = runs.config(
        resilience__hang="3 seconds", evaluations={}, hooks={}, train__total="8 steps", log__every="1 step"
    )
    trainer = engine.Trainer(
        zoo.Classify(),
        make_mesh(MeshSpec(), jax.devices()[:1]),
        zoo.source(),
        config,
        RunDirectory.open(Path(folder)),
        evaluation_sources={},
        hooks={},
        on_row=lambda row: None,
        on_message=lambda text: None,
    )
    for boundary in trainer.train():
        print("step", boundary.step, flush=True)
        if boundary.step == 5:
            time.sleep(7)
    trainer.directory.close()


@pytest.mark.case("a loop that its caller leaves")
def test_loop_that_its_caller_leaves_idle_is_no_hang(tmp_path, add_row):
    program = "import sys; from tests.faults.process_test import leave_the_loop as leave; leave(sys.argv[1])"
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = runs.run(words, env=runs.environment(**runs.COMPILING))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "step 8"
    add_row("a pause of 7 s at a boundary, with `resilience.hang` of 3 s", code=0)


LIMIT = 2 << 30  # bytes, for two training processes and their launcher


@contextlib.contextmanager
def limited_memory() -> Iterator[str]:
    """Code with which a process enters a control group with little memory; empty where none can be created."""
    group = Path("/sys/fs/cgroup/memory") / f"convoy-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        yield ""
        return
    yield f"import os\nopen('{group}/cgroup.procs', 'w').write(str(os.getpid()))"
    end = time.monotonic() + 30
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    group.rmdir()


@pytest.mark.case("out of memory")
def test_out_of_memory_kill_is_retried_and_reported(faults, add_row):
    what = "out of memory" if faults.limited else "SIGKILL of a worker"
    ended = faults.ended[what]
    last = ended.output.splitlines()[-1]
    assert (ended.code, is_retried(ended.code)) == (137, True)
    message = "the kernel reports that memory ran out" if faults.limited else "if nobody sent the signal, memory ran"
    assert "process 1 ended first, with 137 (" in last and message in last
    assert message in ended.status["reason"]
    row = {"detected_s": ended.detected_s, "code": ended.code, **faults.rows[what]}
    note = {} if faults.limited else {"note": "no control group can be created here; SIGKILL by the test"}
    add_row("the kernel kills a process for memory", **row, **note)


@pytest.mark.case("an exception in one process")
def test_exception_in_one_process_ends_all_and_prints_one_sentence(faults, add_row):
    ended = faults.ended["an exception"]
    lines = ended.output.splitlines()
    assert ended.code == ExitStatus.USER_ERROR
    assert ended.detected_s <= runs.limit(10)
    sentence = "KeyError: 'imagee' (tests/faults/process_test.py:"
    assert lines[-1].startswith(f"[1] {sentence}") and "Raised in process 1 of 2, after step " in lines[-1]
    assert sum("KeyError: 'imagee'" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    assert "convoy launch: process 1 ended first, with 1 (the user's error)" in ended.output
    (stacks,) = (faults.run / "stacks").glob("*error.txt")
    assert stacks.name == "attempt-6-process-1-error.txt" and str(stacks) in lines[-1]
    assert "Traceback" in stacks.read_text() and 'raise KeyError("imagee")' in stacks.read_text()
    assert (ended.status["state"], ended.status["exit_code"]) == ("failed", 1)
    assert ended.status["reason"].startswith(f"process 1 ended this run: {sentence}")
    row = {"detected_s": ended.detected_s, "code": ended.code, **faults.rows["an exception"]}
    add_row("an exception of user code in one process", **row)
