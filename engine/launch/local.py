"""Runs one command in several processes on this machine: one output, one place for signals, one exit code.

No process outlives this one: the kernel kills them when it dies (Linux), and each leads a process group of its own,
which is killed whole. The first failure decides: what ends later, ends because of it.
"""

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.cluster import parent, verdict
from engine.cluster.cluster_detection import VARIABLES
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConfigError
from engine.launch import postmortem, timeouts
from engine.launch.signals import Signals
from engine.run.owner import TOKEN


@dataclass(frozen=True)
class End:
    """How a process ended."""

    index: int
    code: int  # as a shell reports it: 128 + the signal for a killed process
    time: float  # monotonic seconds: when it recorded its verdict, else when it had exited
    pid: int
    text: str = ""  # of its verdict, where it recorded one
    signature: str = ""  # of its error, likewise
    step: int | None = None  # steps done, where it has counted any
    why: str = ""  # of the first failure: what its code means


def launch(
    command: Sequence[str], *, processes: int, devices: int | None = None, grace_s: float = timeouts.FAILURE_GRACE_S
) -> int:
    """Runs a command in several processes that find each other, and waits for all.

    Each line of a process is shown with its number, `[1] step 3/10`, on the stream to which the process wrote it.
    SIGINT and SIGTERM are passed on to each. When one fails, the others are killed a moment later; its error is shown
    last and once.

    Args:
        command: a program and its arguments, as `[sys.executable, "-m", "engine.main", "train", ...]`.
        processes: how many.
        devices: CPU devices of each; None leaves devices to JAX.
        grace_s: seconds from the first failure until the others are killed.

    Returns:
        0 when all succeeded, else the exit code of the first failure (`cluster/exit_status.py`).

    Raises:
        ConfigError: a number below 1.
    """
    with Signals() as signals:
        ends = run(command, processes=processes, devices=devices, signals=signals, grace_s=grace_s)
    report(ends)
    return ends[0].code


def run(
    command: Sequence[str],
    *,
    processes: int | None,
    devices: int | None,
    signals: Signals,
    grace_s: float = timeouts.FAILURE_GRACE_S,
) -> list[End]:
    """Runs a command in several processes and returns how each ended: failures first, in the order of time.

    Args:
        command, devices, grace_s: as for `launch`.
        processes: how many; None: a single one, which finds its peers, if any, in the environment, and whose lines
            are shown unchanged.
        signals: passed on to each process.

    Raises:
        ConfigError: a number below 1.
    """
    for name, value in (("--processes", processes), ("--devices-per-process", devices)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: allowed is a whole number from 1.")
    with tempfile.TemporaryDirectory(prefix="convoy-launch-") as folder:
        killed_before = postmortem.killed_for_memory()
        with _Job() as job:
            environments = [_environment(i, processes, devices, Path(folder), job.port) for i in range(processes or 1)]
            job.start(command, environments, alone=processes is None)
            with signals.passed_to(job.send):
                codes = job.wait(grace_s)
        recorded = {found.index: found for found in verdict.read(Path(folder))}
        steps = verdict.read_steps(Path(folder))
        ends = []
        for i, (code, when) in codes.items():
            end = End(i, code, when, job.pids[i], step=steps.get(i))
            if last := recorded.get(i):
                end = dataclasses.replace(end, time=last.time, text=last.text, signature=last.signature)
            ends.append(end)
        first, *others = sorted(ends, key=lambda end: (end.code == ExitStatus.DONE, end.time))
        why = postmortem.why(first.code, first.text, postmortem.killed_for_memory() > killed_before)
        first = dataclasses.replace(first, why=why)
        if first.code != ExitStatus.DONE:
            words = f"process {first.index} ended first, with {first.code} ({why})"
            postmortem.correct_status(Path(folder), job.pids, first.code, words)
    return [first, *others]


def _environment(index: int, count: int | None, devices: int | None, folder: Path, port: int) -> dict[str, str]:
    settings = {"coordinator": f"127.0.0.1:{port}", "count": str(count), "index": str(index)}
    environment = {
        **os.environ,
        verdict.VARIABLE: str(folder / f"{index}.json"),
        "PYTHONUNBUFFERED": "1",
        TOKEN: os.environ.get(TOKEN) or folder.name,  # all processes of a job share one lease
    }
    if count is not None:
        environment |= {VARIABLES[name]: value for name, value in settings.items()}
    if devices is not None:
        environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return environment


def report(ends: Sequence[End], numbered: bool = True) -> None:
    """Shows the first failure of a job, if there is one, with the text of its verdict.

    Args:
        ends: as `run` returns them.
        numbered: whether each line begins with the number of its process.
    """
    failures = [end for end in ends if end.code != ExitStatus.DONE]
    if not failures:
        return
    first, *others = failures
    if numbered:
        same = ", ".join(f"{end.index}: {end.code}" for end in others)
        print(
            f"convoy launch: process {first.index} ended first, with {first.code} ({first.why})"
            + (f"; then {same}" if same else ""),
            file=sys.stderr,
        )
    for line in first.text.splitlines():
        print(f"[{first.index}] {line}" if numbered else line, file=sys.stderr)
    sys.stderr.flush()


class _Job:
    """The processes of one launch. A context manager that ends all of them on exit."""

    def __init__(self):
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[list[threading.Thread]] = []
        self._ends: queue.SimpleQueue[tuple[int, int, float]] = queue.SimpleQueue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._processes]

    def start(self, command: Sequence[str], environments: Sequence[dict[str, str]], alone: bool) -> None:
        """Starts a process for each environment; with `alone` it writes straight to our streams."""
        kill_with_parent, stream = parent.kill_with(os.getpid()), None if alone else subprocess.PIPE
        for environment in environments:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                text=True,
                errors="replace",
                process_group=0,  # Ctrl-C on a terminal reaches this process only, which passes it on once
                preexec_fn=kill_with_parent,
            )
            self._processes.append(process)
        for i, process in enumerate(self._processes):  # threads come after the last fork
            streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            self._threads.append([_thread(_pass_on, i, source, target) for source, target in streams if source])
            _thread(self._wait_for, i, process)

    def wait(self, grace_s: float) -> dict[int, tuple[int, float]]:
        """Returns each process's code and when it was gone; kills the rest `grace_s` after the first failure."""
        codes: dict[int, tuple[int, float]] = {}
        kill_at: float | None = None
        while len(codes) < len(self._processes):
            try:
                i, code, when = self._ends.get(
                    timeout=None if kill_at is None else max(0.0, kill_at - time.monotonic())
                )
            except queue.Empty:
                self._kill()
                kill_at = None
                continue
            codes[i] = (code, when)
            if code and kill_at is None:
                kill_at = time.monotonic() + grace_s
        for threads in self._threads:
            for thread in threads:
                thread.join(timeouts.OUTPUT_S)
        return codes

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self._kill()
        for process in self._processes:
            _end_group(process.pid)

    def send(self, number: int) -> None:
        """Sends a signal to each process that still runs."""
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _wait_for(self, i: int, process: subprocess.Popen[str]) -> None:
        code = process.wait()
        when = time.monotonic()
        _end_group(process.pid)  # its workers hold its output open
        self._ends.put((i, code if code >= 0 else 128 - code, when))

    def _kill(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()  # not its group at once: killing the tracker of shared memory would leave that memory


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _pass_on(i: int, source: IO[str], target: IO[str]) -> None:
    """Copies lines, each whole, with the number of their process."""
    with source:
        for line in source:
            with contextlib.suppress(BrokenPipeError):  # the reader is gone; the process must not stall for that
                target.write(f"[{i}] {line.rstrip()}\n")
                target.flush()


def _end_group(leader: int) -> None:
    """Ends the group of a process that has exited: its workers get time to end and tidy up, then SIGKILL."""
    end = time.monotonic() + timeouts.TIDY_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError after the exit
        while time.monotonic() < end:
            os.killpg(leader, 0)
            time.sleep(0.02)
        os.killpg(leader, signal.SIGKILL)
