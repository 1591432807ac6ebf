"""One of three processes is slowed down in three ways: the run names it, with its reason, within 50 steps."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.loop.stragglers import judge
from engine.run import goodput
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

SLOW = 1  # index of the slow process
ROW_S = 0.015  # each process reads four rows per step, one after the other
ROW_CPU_S = 0.002  # CPU time of each row
LATE_S = 0.03  # added to each row of the slow process
NICE = 15  # of a process with a busy neighbour

NEIGHBOURS = 4
OTHERS_USE = 0.2  # cores that other programs use; with more, they also delay the processes that are not slow
OTHER_PROGRAM = "other programs take its cores: run delay "

# Runs until its standard input ends.
NEIGHBOUR = """
import os, sys, threading
os.sched_setaffinity(0, [int(sys.argv[1])])
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True:
    pass
"""


class Paced:
    """The examples of tests/zoo.py at a fixed pace. In the slow process, they arrive late while the file exists."""

    def __init__(self, file: str):
        self._source, self._file = zoo.source(), Path(file)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        late = os.environ.get("CONVOY_PROCESS_ID") == str(SLOW) and self._file.exists()
        time.sleep(ROW_S + (LATE_S if late else 0))
        end = time.thread_time() + ROW_CPU_S
        while time.thread_time() < end:
            pass
        return self._source[index]


@contextlib.contextmanager
def slow_data(file: Path) -> Iterator[None]:
    file.touch()
    yield
    file.unlink()


class NoControlGroup(Exception):
    """This machine, or the sandbox of the test, does not allow control groups."""


@contextlib.contextmanager
def cpu_limit(pid: int) -> Iterator[None]:
    """Moves a process into a control group that may use 5 % of a core.

    Raises:
        NoControlGroup: none can be created here.
    """
    cpu = Path("/sys/fs/cgroup/cpu")  # version 1, else version 2
    cpu = cpu if cpu.exists() else Path("/sys/fs/cgroup")
    group = cpu / f"convoy-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise NoControlGroup from error
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("5000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("5000")
        (group / "cgroup.procs").write_text(str(pid))
        yield
        (cpu / "cgroup.procs").write_text(str(pid))
    finally:
        with contextlib.suppress(OSError):  # the process is still in it
            group.rmdir()


@contextlib.contextmanager
def busy_neighbours(pid: int) -> Iterator[None]:
    """Pins a process to one core, together with programs that never wait and have a higher priority.

    Each runs in a session of its own, as the process does: the kernel may divide a core between sessions first.
    """
    core = max(os.sched_getaffinity(pid))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
        os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)
    with contextlib.ExitStack() as stack:
        for _ in range(NEIGHBOURS):
            words = [sys.executable, "-c", NEIGHBOUR, str(core)]
            stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True))
        yield


def cpu_of_others() -> float:
    """Returns the seconds of CPU time that programs of this machine have used, other than this process and its own.

    Take the difference of two calls. It is too large by the time of own processes that have ended in between.
    """
    tick, ppid, own = os.sysconf("SC_CLK_TCK"), {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ppid[int(path.parent.name)], own[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:13]))
    mine = 0
    for pid, used in own.items():
        ancestor: int | None = pid
        while ancestor is not None and ancestor != os.getpid():
            ancestor = ppid.get(ancestor)
        mine += used if ancestor is not None else 0
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system - mine) / tick


def named(run: Path) -> list[tuple[int, str]]:
    """Returns the step and the sentence of each time when a process was named the slowest."""
    found = re.findall(r"step (\d+): (process \d+ \(host .+\) is the slowest: .*)", (run / "log.txt").read_text())
    return [(int(step), sentence.rstrip(".")) for step, sentence in found]


@pytest.mark.case("a slow process")
def test_slow_process_is_named_with_its_reason_within_50_steps(tmp_path, add_row):
    run, file = tmp_path / "run", tmp_path / "fault"
    data = {"target": "tests.faults.straggler_test.Paced", "file": str(file), "threads": 1, "prefetch": 1}
    config = harness.config(
        tmp_path / "config",
        train__total="100000 steps",
        train__global_batch_size=12,
        checkpoint__every="100000 steps",
        evaluations={},
        log__examples=False,
        data=data,
    )
    causes, former = [], re.compile("")
    with harness.Job("train", config, f"--workdir={run}", processes=3) as job:
        job.until_step(run, 20)
        pid = job.pid_of(SLOW)
        faults = {  # the last one stays: a process may not raise its priority again
            "slow data": (slow_data(file), judge.DATA, r"its data arrives [\d.]+ ms late in \d+ of \d+ steps"),
            "a CPU limit": (cpu_limit(pid), judge.THROTTLED, r"its CPU limit throttles it \d+% of the time .*"),
            "busy neighbours": (
                busy_neighbours(pid),
                judge.RUN_DELAY,
                r"other programs take its cores: run delay \d+% .*",
            ),
        }
        for name, (fault, cause, reason) in faults.items():
            expected = re.compile(rf"process {SLOW} \(host .+\) is the slowest: {reason}")
            if causes:
                job.until(lambda: not re.fullmatch(former, runs.status(run)["slowest"]))  # noqa: B023
            begin, first = time.monotonic(), max(harness.losses(run))
            used = 0.0
            try:
                with fault:
                    used -= cpu_of_others()
                    job.until(lambda: expected.fullmatch(runs.status(run)["slowest"]))  # noqa: B023
                    detected = time.monotonic() - begin
                    used += cpu_of_others()
            except NoControlGroup:
                add_row(f"one of three processes: {name}", note="no control group can be created here")
                continue
            new = [(step, sentence) for step, sentence in named(run) if step >= first]
            others = [sentence for _, sentence in new if not expected.fullmatch(sentence)]
            # A busy program of this machine may slow down any process first. That it is named is right.
            assert [sentence for sentence in others if OTHER_PROGRAM not in sentence] == []
            step = next(step for step, sentence in new if expected.fullmatch(sentence))
            assert others or used > OTHERS_USE * detected or step - first <= 50
            causes.append(cause)
            former = expected
            add_row(f"one of three processes: {name}", detected_s=detected)
    lost = [entry.get("cause") for entry in goodput.read(run / "goodput.jsonl", (goodput.SLOW,))]
    assert [cause for cause in causes if cause not in lost] == []
