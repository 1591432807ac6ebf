"""Where each process of a job was started: its pid or node, and what started it. For errors about missing processes.

`convoy launch local` and `convoy supervise` write the pids and the exit codes of their processes into the folder of the
verdicts (`verdict.py`). With other launchers, only the variables of the scheduler name the node of a process.
"""

import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engine.cluster import verdict

POLL_S = 1.0
"""Seconds between two calls of `ended` during a wait for other processes."""
SHOWN = 4  # processes that a text describes
_START, _EXIT, _MISSED = ".start", ".exit", ".missed"  # suffixes of the files of a process

type Environment = Mapping[str, str]


def record_start(folder: Path, index: int, pid: int) -> None:
    """Writes, in the launcher, where it started a process."""
    (folder / f"{index}{_START}").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))


def record_exit(folder: Path, index: int, code: int) -> None:
    """Writes, in the launcher, with which code a process has ended."""
    with suppress(OSError):  # the folder may be gone already, at the end of the job
        (folder / f"{index}{_EXIT}").write_text(str(code))


def ended(indices: Iterable[int]) -> list[int]:
    """Returns which processes of this job have ended with exit code 0; none without a launcher that knows."""
    folder = verdict.folder()
    return [i for i in indices if folder is not None and _read(folder / f"{i}{_EXIT}") == "0"]


def record_missed(indices: Iterable[int]) -> None:
    """States for the launcher that this process waited for processes that had ended with 0. The launcher names them."""
    if (folder := verdict.folder()) is not None:
        for i in indices:
            with suppress(OSError):
                (folder / f"{i}{_MISSED}").touch()


def was_missed(folder: Path, index: int) -> bool:
    """Whether another process waited for this one after it had ended with 0."""
    return (folder / f"{index}{_MISSED}").exists()


def described(indices: Iterable[int], me: int, count: int, environment: Environment = os.environ) -> str:
    """Returns where processes were started, as a sentence with a space before it; "" if nothing is known.

    Args:
        indices: the processes.
        me: index of this process. The variables of a scheduler count only if they agree with it.
        count: number of processes.
        environment: the variables.
    """
    known = [text for i in indices if (text := _launched(i) or _scheduled(i, me, count, environment))]
    if not known:
        return ""
    more = f"; ... ({len(known)} processes)" if len(known) > SHOWN else ""
    return f" {'; '.join(known[:SHOWN])}{more}.".replace(" process", " Process", 1)


def _launched(index: int) -> str:
    """Returns what the launcher wrote about a process."""
    folder = verdict.folder()
    if folder is None:
        return ""
    try:
        where = json.loads(_read(folder / f"{index}{_START}"))
    except ValueError:  # there is no such file
        return ""
    started = f"process {index} was started by convoy as pid {where['pid']} on {where['host']}"
    if code := _read(folder / f"{index}{_EXIT}"):
        return f"{started} and has ended with exit code {code}"
    if where["host"] == socket.gethostname() and is_stopped(where["pid"]):
        return f"{started} and is stopped (`kill -CONT {where['pid']}` continues it)"
    return started


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal, such as SIGSTOP. Only Linux tells; a debugger does not count."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    return False


def _scheduled(index: int, me: int, count: int, environment: Environment) -> str:
    """Returns on which node a scheduler has started a process, according to its variables."""
    for read in _SCHEDULERS:
        with suppress(KeyError, ValueError):  # the variables of another scheduler
            found = read(environment)
            if (found.me, found.processes) == (me, count):
                return f"process {index} {found.text(index)}"
    return ""


class _Found(NamedTuple):
    """What the variables of a scheduler tell."""

    me: int  # index of this process
    processes: int
    text: Callable[[int], str]  # index -> what the process is, and where


def _slurm(environment: Environment) -> _Found:
    """Tasks are numbered node by node; with one task on each node, every distribution does so."""
    nodes, tasks = hosts(environment["SLURM_STEP_NODELIST"]), _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    if max(tasks) > 1 and not environment.get("SLURM_DISTRIBUTION", "block").startswith("block"):
        raise ValueError
    places = [node for node, number in zip(nodes, tasks, strict=True) for _ in range(number)]
    job = environment["SLURM_JOB_ID"]
    return _Found(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_NTASKS"]),
        lambda i: f"is task {i} of Slurm's job {job} on node {places[i]}",
    )


def _jobset(environment: Environment) -> _Found:
    pods, jobs = int(environment["PODS_PER_JOB"]), int(environment["JOBS"])
    mine = int(environment["JOB_GLOBAL_INDEX"]) * pods + int(environment["JOB_COMPLETION_INDEX"])
    name = f"{environment['JOBSET_NAME']}-{environment['REPLICATED_JOB_NAME']}"
    return _Found(mine, jobs * pods, lambda i: f"runs in the pod with host name {name}-{i // pods}-{i % pods}")


def _skypilot(environment: Environment) -> _Found:
    places = environment["SKYPILOT_NODE_IPS"].split()
    mine, count = int(environment["SKYPILOT_NODE_RANK"]), int(environment["SKYPILOT_NUM_NODES"])
    return _Found(mine, count, lambda i: f"is SkyPilot's rank {i} on node {places[i]}")


def _tpu(environment: Environment) -> _Found:
    places = environment["TPU_WORKER_HOSTNAMES"].split(",")
    if "MEGASCALE_NUM_SLICES" in environment:  # the variable lists the hosts of one slice only
        raise ValueError
    return _Found(int(environment["TPU_WORKER_ID"]), len(places), lambda i: f"is TPU worker {i} on host {places[i]}")


_SCHEDULERS = (_jobset, _skypilot, _slurm, _tpu)


def hosts(nodes: str) -> list[str]:
    """Returns the nodes of Slurm's node list: "gpu01", "gpu02", "cpu7" of "gpu[01-02],cpu7".

    Raises:
        ValueError: the list is malformed.
    """
    found = []
    for name in re.findall(r"(?:[^,\[]+|\[[^\]]*\])+", nodes):
        parts = [_numbers(part[1:-1]) if part[0] == "[" else [part] for part in re.findall(r"\[[^\]]*\]|[^\[]+", name)]
        found += ["".join(words) for words in itertools.product(*parts)]
    return found


def _numbers(text: str) -> list[str]:
    """Returns "01", "02", "7" of "01-02,7"."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return found


def _tasks_per_node(text: str) -> list[int]:
    """Returns 2, 2, 1 of "2(x2),1"."""
    found = []
    for part in text.split(","):
        number, _, times = part.rstrip(")").partition("(x")
        found += [int(number)] * int(times or 1)
    return found


def _read(file: Path) -> str:
    """Returns the content of a file of the launcher; "" if it does not exist."""
    try:
        return file.read_text()
    except OSError:
        return ""
