"""Runs one command in several processes on this machine, with one output, signal forwarding and one exit code.

The first failure determines the exit code; later failures are assumed to follow from it (`in_order`). No process
outlives the launcher: on Linux the kernel kills them when it dies, and each process leads a process group that is
killed as a whole.
"""

import contextlib
import dataclasses
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import ConfigError
from engine.base.files import temporary_folder
from engine.base.host import oom_kills
from engine.cluster import origins, output, parent, verdict
from engine.cluster.cluster_detection import VARIABLES
from engine.cluster.exit_status import ExitStatus
from engine.cluster.forwarding import Forwarder
from engine.cluster.shutdown import RunThread
from engine.launch import postmortem, timeouts
from engine.launch.signals import Signals
from engine.launch.stopped import StoppedProcesses
from engine.run.owner import TOKEN

_UNREAD = "stopped before its result was read: nothing reads standard output"


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended."""

    index: int
    code: int  # exit code as a shell reports it: 128 + the signal for a killed process
    time: float  # monotonic seconds: when it recorded its verdict, else when it exited
    pid: int
    text: str = ""  # text of its verdict, if it recorded one
    signature: str = ""  # failure signature of its verdict, if it recorded one
    step: int | None = None  # steps done, if it counted any
    explanation: str = ""  # meaning of the exit code of the first failure
    out_of_memory: bool = False  # whether it was killed, while the kernel killed a process for lack of memory


def launch(
    command: Sequence[str], *, processes: int, devices: int | None = None, grace_s: float = timeouts.FAILURE_GRACE_S
) -> int:
    """Runs a command in several processes that find each other, and waits until all have ended.

    Each output line is prefixed with the index of its process, `[1] step 3/10`. SIGINT and SIGTERM are forwarded to all
    processes. After the first failure the others are killed; its error is printed last, and once.

    Args:
        command: a program and its arguments, such as `[sys.executable, "-m", "engine.cli.main", "train", ...]`.
        processes: number of processes.
        devices: CPU devices per process; None leaves devices to JAX.
        grace_s: seconds from the first failure until the others are killed.

    Returns:
        0 if all succeeded, else the exit code of the first failure (`cluster/exit_status.py`).

    Raises:
        ConfigError: a number below 1.
    """
    with Signals() as signals:
        exits = run(command, processes=processes, devices=devices, signals=signals, grace_s=grace_s)
    report(exits)
    return exits[0].code


def run(
    command: Sequence[str],
    *,
    processes: int | None,
    devices: int | None,
    signals: Signals,
    grace_s: float = timeouts.FAILURE_GRACE_S,
) -> list[ProcessExit]:
    """Runs a command in several processes and returns how each ended: failures first, ordered by time.

    Args:
        command, devices, grace_s: as for `launch`.
        processes: number of processes; None starts a single one, which detects its cluster from the environment and
            whose output is not prefixed.
        signals: forwarded to each process.

    Raises:
        ConfigError: a number below 1.
    """
    for name, value in (("--processes", processes), ("--devices-per-process", devices)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: allowed is a whole number from 1.")
    with temporary_folder("launch") as folder:
        oom_kills_before = oom_kills()
        with _Job(folder) as job:
            environments = [_environment(i, processes, devices, folder, job.port) for i in range(processes or 1)]
            job.start(command, environments, alone=processes is None)
            with signals.forwarded_to(job.send):
                codes = job.wait(grace_s, signals)
        first, *others = _exits(folder, job, codes, signals)
        out_of_memory = first.code == ExitStatus.SIGKILL and not first.text and oom_kills() > oom_kills_before
        reason, explanation = first.explanation, postmortem.explain_exit(first.code, first.text, out_of_memory)
        first = dataclasses.replace(first, explanation=explanation, out_of_memory=out_of_memory)
        if first.code != ExitStatus.DONE:
            reason = reason or f"process {first.index} ended first, with {first.code} ({explanation})"
            postmortem.correct_status(folder, job.pids, first.code, reason)
        postmortem.note_output(folder)
    return [first, *others]


def _exits(folder: Path, job: "_Job", codes: dict[int, tuple[int, float]], signals: Signals) -> list[ProcessExit]:
    """Returns how each process ended, in order, from the return value of `job.wait` and from what it recorded."""
    recorded = {found.index: found for found in verdict.read(folder)}
    steps = verdict.read_steps(folder)
    exits = []
    for i, (code, when) in codes.items():
        last = recorded.get(i)
        ended = ProcessExit(i, code, when, job.pids[i], step=steps.get(i))
        if code == ExitStatus.DONE and not job.output_is_complete:
            ended = dataclasses.replace(ended, code=128 + signals.received[0], text=_UNREAD, explanation=_UNREAD)
        if last:
            ended = dataclasses.replace(ended, time=last.time, text=last.text, signature=last.signature)
        elif text := job.ended_because.get(i):
            ended = dataclasses.replace(ended, code=ExitStatus.RETRY, text=text)
        if code == ExitStatus.DONE and (text := postmortem.unfinished(folder, i, job.pids)):
            failed = last.code if last and last.code else ExitStatus.USER_ERROR
            ended = dataclasses.replace(ended, code=failed, text=ended.text or text, explanation=text)
        exits.append(ended)
    by_launcher = {ended.index for ended in exits if ended.code - 128 in signals.received} | job.killed
    unexplained = {ended.index for ended in exits} - recorded.keys() - by_launcher
    return in_order(exits, unexplained, blaming=[i for i, last in recorded.items() if last.blames_peer])


def in_order(exits: Sequence[ProcessExit], unexplained: Collection[int], blaming: Collection[int]) -> list[ProcessExit]:
    """Returns ended processes as `run` does: failures first, ordered by time, a lost peer before those that lost it.

    A process may record that it lost its peer before the launcher notices the end of that peer. A process that was
    killed or crashed counts as lost by then.

    Args:
        exits: all processes of the job.
        unexplained: indices of the processes without a verdict, except those that the launcher has ended.
        blaming: indices of the processes whose verdict states only that they lost a peer.
    """
    lost = min((ended.time for ended in exits if ended.index in blaming), default=math.inf)

    def key(ended: ProcessExit) -> tuple[bool, float, bool, float]:
        is_cause = ended.index in unexplained
        when = min(ended.time, lost) if is_cause else ended.time
        return ended.code == ExitStatus.DONE, when, not is_cause, ended.time

    return sorted(exits, key=key)


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


def report(exits: Sequence[ProcessExit], prefixed: bool = True) -> None:
    """Prints the first failure of a job, if any, with the text of its verdict.

    Args:
        exits: the return value of `run`.
        prefixed: whether each line starts with the index of its process.
    """
    failures = [ended for ended in exits if ended.code != ExitStatus.DONE]
    if not failures:
        return
    first, *others = failures
    if prefixed:
        later = ", ".join(f"{ended.index}: {ended.code}" for ended in others)
        done = ", ".join(str(ended.index) for ended in exits if ended.code == ExitStatus.DONE)
        output.show(
            f"convoy launch: process {first.index} ended first, with {first.code} ({first.explanation})"
            + (f"; then {later}" if later else "")
            + (f"; with 0: {done}" if done else "")
        )
    for line in first.text.splitlines():
        output.show(f"[{first.index}] {line}" if prefixed else line)


class _Job:
    """The processes of one launch. A context manager that kills all of them on exit."""

    def __init__(self, folder: Path):
        self._folder = folder  # of the verdicts
        self.ended_because: dict[int, str] = {}
        """Processes that the launcher has ended because they were stopped, with the reason."""
        self.killed: set[int] = set()
        """Processes that the launcher has killed, for whatever reason."""
        self.output_is_complete = True
        """Whether nothing waits for a reader once `wait` has returned: a signal ends the wait of a result."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forwarders: list[Forwarder] = []
        self._exits: queue.SimpleQueue[tuple[int, int, float]] = queue.SimpleQueue()  # index, code, time
        self._reserved = socket.socket()
        if sys.platform.startswith("linux"):  # which lets process 0 listen at the port of a socket that does not
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        if not sys.platform.startswith("linux"):
            self._reserved.close()

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._processes]

    def start(self, command: Sequence[str], environments: Sequence[dict[str, str]], alone: bool) -> None:
        """Starts one process per environment and forwards its output, with `alone` unchanged."""
        kill_with_parent = parent.kill_with(os.getpid())
        self._forwarders = [Forwarder(None if alone else f"[{i}] ") for i in range(len(environments))]
        for environment, forwarder in zip(environments, self._forwarders, strict=True):
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=forwarder.stdout,  # also of a single process, which must not wait for the launcher's reader
                stderr=forwarder.stderr,
                process_group=0,  # Ctrl-C on a terminal reaches only the launcher, which forwards it once
                preexec_fn=kill_with_parent,
            )
            self._processes.append(process)
        for i, process in enumerate(self._processes):
            origins.record_start(self._folder, i, process.pid)
        for i, process in enumerate(self._processes):  # threads start after the last fork
            self._forwarders[i].start()
            _start_thread(self._wait_for, i, process)

    def wait(self, grace_s: float, signals: Signals) -> dict[int, tuple[int, float]]:
        """Returns the exit code and time of each process; kills the rest `grace_s` after the first failure."""
        codes: dict[int, tuple[int, float]] = {}
        kill_at: float | None = None
        stopped = StoppedProcesses(several=len(self._processes) > 1)
        while len(codes) < len(self._processes):
            left = timeouts.STOPPED_POLL_S if kill_at is None else max(0.0, kill_at - time.monotonic())
            try:
                i, code, when = self._exits.get(timeout=left)
            except queue.Empty:
                if kill_at is not None:
                    self._kill()
                    kill_at = None
                else:
                    self._end_stopped(stopped, codes)
                continue
            codes[i] = (code, when)
            # The others wait in vain for a process that ended with 0 in the middle of its work, too.
            if (code or verdict.is_unfinished(self._folder, i)) and kill_at is None:
                kill_at = time.monotonic() + grace_s
        complete = [forwarder.join(lambda: signals.received) for forwarder in self._forwarders]
        self.output_is_complete = all(complete)
        return codes

    def _end_stopped(self, stopped: StoppedProcesses, codes: Collection[int]) -> None:
        """Names processes that are stopped, and ends those for which the others have waited too long."""
        running = {i: self._pids(i) for i in range(len(self._processes)) if i not in codes}
        to_end = stopped.poll(running, ended=len(codes))
        for text in stopped.messages:
            output.show(f"convoy launch: {text}")
        for i, text in to_end.items():
            self.ended_because.setdefault(i, text)
            self.killed.add(i)
            for pid in running[i]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _pids(self, i: int) -> set[int]:
        """Returns the pid of a process, and that of the verb, if the process is a shell that has started it."""
        leader, verb = self._processes[i].pid, verdict.running_pid(self._folder, i)
        with contextlib.suppress(ProcessLookupError):
            if verb is not None and os.getpgid(verb) == leader:  # else the system has given the pid to another program
                return {leader, verb}
        return {leader}

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self._kill()
        for process in self._processes:
            _kill_group(process.pid)
        self._reserved.close()

    def send(self, number: int) -> None:
        """Sends a signal to each process that is still running."""
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _wait_for(self, i: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        when = time.monotonic()
        origins.record_exit(self._folder, i, code)
        _kill_group(process.pid)  # its workers keep its output open
        self._exits.put((i, code if code >= 0 else 128 - code, when))

    def _kill(self) -> None:
        for i, process in enumerate(self._processes):
            if process.returncode is None:
                self.killed.add(i)
                process.kill()  # not its group: without the resource tracker, shared memory would be leaked


def _start_thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = RunThread(target, target.__name__.strip("_"), arguments)
    thread.start()
    return thread


def _kill_group(leader: int) -> None:
    """Ends the group of a process that has exited: waits for its workers to clean up, then sends SIGKILL."""
    end = time.monotonic() + timeouts.TIDY_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError after the exit
        while time.monotonic() < end:
            os.killpg(leader, 0)
            time.sleep(0.02)
        os.killpg(leader, signal.SIGKILL)
