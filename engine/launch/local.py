"""Runs one command in several processes on this machine, with one output, signal forwarding and one exit code.

The first failure determines the exit code; later failures are assumed to follow from it (`in_order`). `job.py` starts
the processes. A launcher of several machines, such as that of Ray, runs `run_here` on each.
"""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import ConfigError
from engine.base.files import temporary_folder
from engine.base.host import oom_kills
from engine.cluster import output, verdict
from engine.cluster.cluster_detection import VARIABLES
from engine.cluster.exit_status import ExitStatus
from engine.launch import postmortem, timeouts
from engine.launch.job import Job, reserved_port
from engine.launch.signals import Signals
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
    with temporary_folder("launch") as folder, reserved_port("127.0.0.1") as port:
        coordinator, token = f"127.0.0.1:{port}", folder.name
        environments = {
            i: environment(os.environ, i, processes, coordinator, folder, token) | _devices(devices)
            for i in range(processes or 1)
        }
        job = Job(folder)
        outcome = run_here(job, command, environments, signals=signals, alone=processes is None, grace_s=grace_s)
        exits, reason = explain_first(outcome.in_order(), outcome.memory_ran_out)
        if reason:
            postmortem.correct_status(folder, job.pids.values(), exits[0].code, reason)
        postmortem.note_output(folder)
    return exits


@dataclass(frozen=True)
class Outcome:
    """How processes on one machine ended, and what their launcher there knows about each."""

    exits: list[ProcessExit]
    unexplained: set[int]  # indices of those without a verdict, except those that the launcher has ended
    blaming: set[int]  # indices of those whose verdict states only that they lost a peer
    memory_ran_out: bool  # whether the kernel has killed a process for lack of memory in the meantime

    def in_order(self) -> list[ProcessExit]:
        """Returns the ended processes, failures first."""
        return in_order(self.exits, self.unexplained, self.blaming)


def run_here(
    job: Job,
    command: Sequence[str],
    environments: Mapping[int, dict[str, str]],
    *,
    signals: Signals,
    alone: bool = False,
    cwd: str | None = None,
    grace_s: float = timeouts.FAILURE_GRACE_S,
) -> Outcome:
    """Runs processes of a job on this machine until all have ended.

    Args:
        job: starts and ends them. It is used for one call.
        command, grace_s: as for `launch`.
        environments: index of a process -> its environment (`environment`).
        signals: forwarded to each process.
        alone: whether the output of the only process is not prefixed.
        cwd: folder in which they start; None: that of this process.
    """
    oom_kills_before = oom_kills()
    with job:
        job.start(command, environments, alone, cwd)
        with signals.forwarded_to(job.send):
            codes = job.wait(grace_s, signals)
    return _outcome(job, codes, signals, oom_kills() > oom_kills_before)


def explain_first(exits: Sequence[ProcessExit], memory_ran_out: bool) -> tuple[list[ProcessExit], str]:
    """Adds the meaning of its exit code to the process that ended first.

    Args:
        exits: the processes of a job, failures first.
        memory_ran_out: whether the kernel has killed a process for lack of memory on the machine of the first.

    Returns:
        The processes, and why the job ended, as a sentence; "" if it is done.
    """
    first, *others = exits
    out_of_memory = first.code == ExitStatus.SIGKILL and not first.text and memory_ran_out
    explanation = postmortem.explain_exit(first.code, first.text, out_of_memory)
    reason = first.explanation or f"process {first.index} ended first, with {first.code} ({explanation})"
    first = dataclasses.replace(first, explanation=explanation, out_of_memory=out_of_memory)
    return [first, *others], "" if first.code == ExitStatus.DONE else reason


def _outcome(job: Job, codes: Mapping[int, tuple[int, float]], signals: Signals, memory_ran_out: bool) -> Outcome:
    """Returns how each process ended, from the return value of `job.wait` and from what it recorded."""
    recorded = {found.index: found for found in verdict.read(job.folder)}
    steps = verdict.read_steps(job.folder)
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
        if code == ExitStatus.DONE and (text := postmortem.unfinished(job.folder, i, job.pids[i])):
            failed = last.code if last and last.code else ExitStatus.USER_ERROR
            ended = dataclasses.replace(ended, code=failed, text=ended.text or text, explanation=text)
        exits.append(ended)
    by_launcher = {ended.index for ended in exits if ended.code - 128 in signals.received} | job.killed
    unexplained = {ended.index for ended in exits} - recorded.keys() - by_launcher
    return Outcome(exits, unexplained, {i for i, last in recorded.items() if last.blames_peer}, memory_ran_out)


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


def environment(
    variables: Mapping[str, str], index: int, count: int | None, coordinator: str, folder: Path, token: str
) -> dict[str, str]:
    """Returns the environment of a process of a job.

    Args:
        variables: those that it has in any case; a token among them takes precedence.
        index: its index.
        count: number of processes; None for a single one, which detects its cluster from the environment.
        coordinator: HOST:PORT of process 0.
        folder: for its verdict.
        token: lets all processes of the job share one lease.
    """
    settings = {"coordinator": coordinator, "count": str(count), "index": str(index)}
    found = {
        **variables,
        verdict.VARIABLE: str(folder / f"{index}.json"),
        "PYTHONUNBUFFERED": "1",
        TOKEN: variables.get(TOKEN) or token,
    }
    return found if count is None else found | {VARIABLES[name]: value for name, value in settings.items()}


def _devices(devices: int | None) -> dict[str, str]:
    return {} if devices is None else {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


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
